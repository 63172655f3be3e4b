"""The control listener: what is true of the workers, for HAProxy's health check, /info and `serve` itself."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from serve.logs import log

# A worker ends a hung call itself; one that cannot even do that is killed this much later.
_KILL_AFTER_S = 2.0
# A stopped worker takes requests from MMS and answers none; a moment's stop (a debugger, a checkpoint) is forgiven.
_STOPPED_S = 3.0


@dataclass
class WorkerState:
    """One worker process, from its announcement to its end."""

    model: str
    pid: int
    parent: int
    busy_since: float | None = None
    stopped_since: float | None = None

    def can_answer(self) -> bool:
        """False for a process that is stopped or a zombie."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in "TtZX"


@dataclass
class Fleet:
    """All workers that have announced themselves. Shared by threads; every method takes the lock."""

    work_s: float
    failure: str | None = None
    workers: dict[int, WorkerState] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, worker: WorkerState) -> None:
        with self._lock:
            self.workers[worker.pid] = worker

    def remove(self, pid: int) -> None:
        with self._lock:
            self.workers.pop(pid, None)

    def ready(self) -> bool:
        """Whether any worker can answer a request now or after the one that it works on."""
        return any(worker.can_answer() and not self._overdue(worker) for worker in self._all())

    def orphaned(self) -> bool:
        """Whether the process that forks workers is gone: MMS starts no other (tried)."""
        return any(not _alive(worker.parent) for worker in self._all())

    def kill_stuck(self) -> None:
        """End the workers that hang past the deadline or are stopped; MMS starts others in their place."""
        for worker in self._all():
            worker.stopped_since = None if worker.can_answer() else worker.stopped_since or time.monotonic()
            stopped = worker.stopped_since is not None and time.monotonic() - worker.stopped_since > _STOPPED_S
            if stopped or self._overdue(worker, _KILL_AFTER_S):
                log("serve", "a worker does not answer and is killed", pid=worker.pid, model=worker.model)
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                self.remove(worker.pid)

    def _overdue(self, worker: WorkerState, grace_s: float = 0.0) -> bool:
        since = worker.busy_since
        return since is not None and time.monotonic() - since > self.work_s + grace_s

    def _all(self) -> list[WorkerState]:
        with self._lock:
            return list(self.workers.values())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Control:
    """Two Unix sockets in `folder`: `control.sock` speaks HTTP, on `workers.sock` workers tell their state."""

    def __init__(self, folder: Path, *, work_s: float, info: Callable[[], dict[str, Any]]) -> None:
        self.fleet = Fleet(work_s)
        self.http_address = folder / "control.sock"
        self.workers_address = folder / "workers.sock"
        self.draining = False
        self._backend_listens: Callable[[], bool] | None = None
        self.info = info
        self._servers: list[socketserver.BaseServer] = []

    def start(self) -> None:
        self._listen(self.http_address, _HttpHandler)
        self._listen(self.workers_address, _WorkerHandler)

    def _listen(self, address: Path, handler: type[socketserver.BaseRequestHandler]) -> None:
        server = _Server(str(address), handler)
        server.control = self
        threading.Thread(target=server.serve_forever, daemon=True, name=address.name).start()
        self._servers.append(server)

    def await_backend(self, listens: Callable[[], bool]) -> None:
        """Count as ready only once `listens` has been true: a worker can be ready before MMS takes requests."""
        self._backend_listens = listens

    def ready(self) -> bool:
        if self.draining or not self.fleet.ready():
            return False
        if self._backend_listens and self._backend_listens():
            self._backend_listens = None
        return self._backend_listens is None


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    control: Control

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A health check that has seen the status may hang up; anything else is worth a line."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            log("serve", "control failed", traceback=traceback.format_exc())


class _WorkerHandler(socketserver.StreamRequestHandler):
    """Follows one worker until its end of the line."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101
        fleet = self.server.control.fleet
        worker: WorkerState | None = None
        for line in self.rfile:
            event = json.loads(line)
            if event["state"] == "failed":
                fleet.failure = event["message"]
            elif event["state"] == "ready":
                worker = WorkerState(model=event["model"], pid=event["pid"], parent=event["parent"])
                fleet.add(worker)
            elif worker:
                worker.busy_since = time.monotonic() if event["state"] == "busy" else None
        if worker:
            fleet.remove(worker.pid)


class _HttpHandler(BaseHTTPRequestHandler):
    """The paths that the front sends here."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # One write an answer.

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101
        control = self.server.control
        if self.path == "/health":
            self._answer(200 if control.ready() else 503, {})
        elif self.path == "/info":
            self._answer(200, control.info())
        else:
            self._answer(404, {})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "front"  # A Unix socket's peer has no address for the base class to take apart.

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the front logs the requests of users, and health checks are no news."""
