"""The line between a worker and `serve`: a worker says what it does, and an end of the line is the worker's end.

A Unix socket. First `serve` hands its stdout over: a worker's own leads to Java, which takes each line apart and
writes it again. Then the worker sends JSON lines: {"state": "ready" | "busy" | "idle" | "failed", …}. MMS's own list of
workers cannot be used for this: it calls a worker READY while it still loads.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

# What a worker is told at its start: a file of this name in the folder that MMS takes for the model's.
SETTINGS: Final = "worker.json"


def hand_over_stdout(worker: socket.socket) -> None:
    """What `serve` sends first."""
    socket.send_fds(worker, [b"\n"], [1])


class Link:
    """A worker's end. Where `serve` is gone, sending does nothing: the worker is about to be ended with it."""

    def __init__(self, address: Path, *, model: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        self._model = model
        _, (self.stdout,), _, _ = socket.recv_fds(self._socket, 1, 1)

    def ready(self, *, embedding_length: int | None) -> None:
        """Loaded, and has answered a warm-up."""
        self._send(
            state="ready",
            model=self._model,
            pid=os.getpid(),
            parent=os.getppid(),
            embedding_length=embedding_length,
        )

    def failed(self, message: str) -> None:
        """The model cannot be loaded, and trying again would not help."""
        self._send(state="failed", model=self._model, pid=os.getpid(), parent=os.getppid(), message=message)

    def busy(self) -> None:
        self._send(state="busy")

    def idle(self) -> None:
        self._send(state="idle")

    def _send(self, **fields: Any) -> None:
        try:
            self._socket.sendall(json.dumps(fields).encode() + b"\n")
        except OSError:
            return
