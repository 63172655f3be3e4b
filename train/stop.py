"""SIGTERM and ^C: SageMaker's way to end a job (stop, time limit, spot reclaim, tuning's early stop).

SageMaker sends SIGTERM and, 120 s later, SIGKILL. As PID 1 a process has no default action for a signal, so without
a handler it would run on until the SIGKILL.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Final

_NOTHING_SAVED: Final = "stopped by a signal before there was anything to save"


class Stopped(BaseException):
    """Raised where nothing is lost by leaving; no Exception, so that no library's `except Exception` keeps it."""


class StopFlag:
    """Whether the job was asked to end. The signal may arrive at any moment; the job looks when it can leave."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._raising = False
        self._file: Path | None = None

    def install(self, file: Path | None = None) -> None:
        """Handle SIGTERM and SIGINT from now on, by raising `Stopped` until `hold` is called.

        A `file` that appears asks the same: this is how one process passes the word to those it started.
        """
        self._raising = True
        self._file = file
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def hold(self) -> None:
        """There is something to save now: only take note, and leave it to the training loop to look."""
        self._raising = False

    def requested(self) -> bool:
        return self.signal is not None or (self._file is not None and self._file.exists())

    def check(self) -> None:
        """Leave if asked to."""
        if self.requested():
            raise Stopped(_NOTHING_SAVED)

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended: 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGTERM)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, number
        if first:
            # Not print: the signal may have interrupted one, which takes no other inside it.
            os.write(1, f"{signal.Signals(number).name} received: ending the job\n".encode())
        if first and self._raising:
            raise Stopped(_NOTHING_SAVED)


STOP = StopFlag()
