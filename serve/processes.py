"""Child processes of `serve`, safe as PID 1: orphans are reaped, signals are turned into flags, nothing outlives us."""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from serve.logs import log

_PR_SET_CHILD_SUBREAPER = 36


class Processes:
    """The programs that were started, by name; each leads a process group of its own."""

    def __init__(self) -> None:
        self.stop_asked = False
        self._names: dict[int, str] = {}
        self._ended: dict[str, int] = {}
        # An Event's lock is not for handlers, which may interrupt its owner: a byte in a pipe wakes us instead.
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # MMS's workers outlive a killed Java; as their new parent we can reap them.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _ask_to_stop(self, *_: Any) -> None:
        self.stop_asked = True

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str], noise: str | None = None) -> None:
        """Start a program; with `noise`, its lines on stderr become log lines of ours, but for those that match it."""
        errors = None if noise is None else subprocess.PIPE
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=errors, process_group=0)
        self._names[process.pid] = name
        if process.stderr and noise:
            threading.Thread(target=_retell, args=(name, process.stderr, noise), daemon=True).start()
        process.returncode = 0  # Reaped by `wait`; Popen's own bookkeeping would wait for it again.

    def wait(self, timeout_s: float) -> None:
        """Sleep until a signal or the time-out, then reap whatever has ended."""
        if select.select([self._woken], [], [], timeout_s)[0]:
            os.read(self._woken, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self._names.get(pid):
                self._ended[name] = os.waitstatus_to_exitcode(status)

    def exit_code(self, name: str) -> int | None:
        """None while it runs; negative for a signal."""
        return self._ended.get(name)

    def kill_all(self) -> None:
        """End every process group that was started, workers of MMS included, and reap them."""
        for pid in self._names:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        while any(name not in self._ended for name in self._names.values()):
            self.wait(0.5)


def _retell(name: str, lines: IO[bytes], noise: str) -> None:
    for line in lines:
        text = line.decode(errors="replace").strip()
        if not re.search(noise, text):
            log(name, text)
