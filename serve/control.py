"""The control listener: its two sockets, and what is true of the workers that have announced themselves there."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from serve.link import hand_over_stdout
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
    """All workers that have announced themselves, how many have ended unasked, and why models could not be loaded.

    Shared by threads.
    """

    work_s: float
    failures: dict[str, str] = field(default_factory=dict)
    embedding_lengths: dict[str, int | None] = field(default_factory=dict)
    ended: int = 0
    dismissed: set[str] = field(default_factory=set)
    workers: dict[int, WorkerState] = field(default_factory=dict)
    _pids: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, worker: WorkerState) -> None:
        with self._lock:
            self.workers[worker.pid] = worker
            self._pids.setdefault(worker.model, []).append(worker.pid)

    def remove(self, pid: int) -> None:
        with self._lock:
            worker = self.workers.pop(pid, None)
            self.ended += worker is not None and worker.model not in self.dismissed

    def dismiss(self, model: str) -> None:
        """That the workers of `model` end from now on is no news, until it is forgotten."""
        with self._lock:
            self.dismissed.add(model)

    def forget(self, model: str) -> list[int]:
        """The process ids of all workers that `model` has had, for the last time."""
        with self._lock:
            self.embedding_lengths.pop(model, None)
            self.failures.pop(model, None)
            self.dismissed.discard(model)
            return self._pids.pop(model, [])

    def ready(self, model: str) -> bool:
        """Whether any worker of `model` can answer a request now or after the one that it works on."""
        return any(worker.model == model and worker.can_answer() and not self._overdue(worker) for worker in self.all())

    def has(self, model: str) -> bool:
        return any(worker.model == model for worker in self.all())

    def orphaned_models(self) -> set[str]:
        """Models whose process that forks workers is gone: MMS starts no other (tried)."""
        return {worker.model for worker in self.all() if not _alive(worker.parent)}

    def kill_stuck(self) -> None:
        """End the workers that hang past the deadline or are stopped; MMS starts others in their place."""
        for worker in self.all():
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

    def all(self) -> list[WorkerState]:
        with self._lock:
            return list(self.workers.values())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Reply:
    """What a path of control answers: a JSON value, or text of another type."""

    status: int
    value: Any
    content_type: str = "application/json"

    def body(self) -> bytes:
        return self.value if isinstance(self.value, bytes) else json.dumps(self.value).encode()


@dataclass(frozen=True)
class Call:
    """A request to control; `query` has the first value of each parameter."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    request_id: str


class Control:
    """Two Unix sockets in `folder`: `control.sock` speaks HTTP, on `workers.sock` workers tell their state."""

    def __init__(self, folder: Path, *, work_s: float) -> None:
        self.fleet = Fleet(work_s)
        self.http_address = folder / "control.sock"
        self.workers_address = folder / "workers.sock"

    def start(self, answer: Callable[[Call], Reply]) -> None:
        """Listen; `answer` is called in a thread for every HTTP request, and raises nothing."""
        self._listen(self.workers_address, _WorkerHandler, answer)
        self._listen(self.http_address, _HttpHandler, answer)

    def _listen(
        self, address: Path, handler: type[socketserver.BaseRequestHandler], answer: Callable[[Call], Reply]
    ) -> None:
        server = _Server(str(address), handler)
        server.fleet = self.fleet
        server.answer = answer
        threading.Thread(target=server.serve_forever, daemon=True, name=address.name).start()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    fleet: Fleet
    answer: Callable[[Call], Reply]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A health check that has seen the status may hang up; anything else is worth a line."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            log("serve", "control failed", traceback=traceback.format_exc())


class _WorkerHandler(socketserver.StreamRequestHandler):
    """Follows one worker until its end of the line."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101
        fleet = self.server.fleet
        worker: WorkerState | None = None
        hand_over_stdout(self.request)
        for line in self.rfile:
            event = json.loads(line)
            if event["state"] == "failed":
                fleet.failures[event["model"]] = event["message"]
            elif event["state"] == "ready":
                worker = WorkerState(model=event["model"], pid=event["pid"], parent=event["parent"])
                fleet.embedding_lengths[worker.model] = event["embedding_length"]
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
        path, _, query = self.path.partition("?")
        call = Call(
            method=self.command,
            path=path,
            query=dict(parse_qsl(query)),
            body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            request_id=self.headers.get("X-Request-Id", ""),
        )
        reply = self.server.answer(call)
        body = reply.body()
        self.send_response_only(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_DELETE = do_GET

    def address_string(self) -> str:
        return "front"  # A Unix socket's peer has no address for the base class to take apart.

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the front logs the requests of users, and health checks are no news."""
