"""A line between the hosts of a job: who is there at the start, and who failed later.

The first host listens, the others call. No collective can say any of this: a rendezvous that lacks a host only times
out, and where one host's processes end, the others' wait for them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from container.errors import TrainingError
from train.casualty import Casualty, first_of
from train.stop import STOP, Stopped
from train.topology import Topology

PORT: Final = 7776
# Instances of one job come up within minutes of each other.
DEFAULT_WAIT_S: Final = 600
_RETRY_S: Final = 0.5
_LINE_BYTES: Final = 4096
# How long a host that is done waits for the others, and one that failed in another's wake for that one's word.
_END_S: Final = 60
WORD_S: Final = 10
_GRACE_S: Final = 30  # for the leader's answer to arrive


class HostLink:
    """Open connections by host name, and what came over them of failures."""

    def __init__(self, current: str, peers: dict[str, socket.socket]) -> None:
        self.current = current
        self._peers = peers
        self._failures: list[Casualty] = []
        self._ended: set[str] = set()  # those that have said how it went
        self._heard = 0.0
        self._lock = threading.Lock()
        for name, connection in peers.items():
            threading.Thread(target=self._listen, args=(name, connection), daemon=True).start()

    @property
    def failure(self) -> Casualty | None:
        """Why another host's training ended, if it did."""
        return first_of(tuple(self._failures))

    @property
    def silent_s(self) -> float:
        """Seconds since the last word of a failure came."""
        return time.monotonic() - self._heard

    def settle(self, own: Casualty | None) -> Casualty | None:
        """Tell the others how training ended here, hear how it ended there, and return the failure to blame, if any.

        Where this host failed in the wake of another, that one's word may still be under way.
        """
        if own is None and self.failure is None:
            self._tell({"done": True}, but="")
            self._wait(lambda: self.failure is not None or self._ended >= set(self._peers), _END_S)
        elif own is not None:
            self._tell({"failed": own.to_json()}, but="")

        def blamed() -> Casualty | None:
            return first_of([*self._failures, *([own] if own else [])])

        self._wait(lambda: not ((found := blamed()) and found.wake), WORD_S)
        return blamed()

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # Ends the thread that listens, which holds it open.
            connection.close()

    def _tell(self, message: dict[str, Any], *, but: str) -> None:
        for name, connection in self._peers.items():
            if name != but:
                with contextlib.suppress(OSError):
                    _send(connection, message)

    def _listen(self, name: str, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection.makefile() as lines:
            for line in lines:
                message = json.loads(line)
                self._ended.add(name)
                if "failed" in message:
                    self._hear(Casualty(**message["failed"]), source=name)
        if name not in self._ended:
            message = f"host {name} ended without a word; its log says why"
            self._hear(Casualty(message=message, time=time.time()), source=name)

    def _hear(self, casualty: Casualty, *, source: str) -> None:
        with self._lock:
            new = casualty not in self._failures
            self._failures += [casualty] * new
            self._heard = time.monotonic()
        if new:
            self._tell({"failed": casualty.to_json()}, but=source)


def meet(topology: Topology, *, wait_s: float = DEFAULT_WAIT_S, port: int = PORT) -> HostLink:
    """Wait until all hosts are there. Raises TrainingError that names those that are not, or Stopped."""
    deadline = time.monotonic() + wait_s
    if topology.leads:
        return HostLink(topology.current, _gather(topology, deadline, wait_s=wait_s, port=port))
    return HostLink(topology.current, {topology.hosts[0]: _call(topology, deadline, wait_s=wait_s, port=port)})


def _gather(topology: Topology, deadline: float, *, wait_s: float, port: int) -> dict[str, socket.socket]:
    peers: dict[str, socket.socket] = {}
    try:
        with _server(port) as server:
            server.settimeout(_RETRY_S)
            while missing := [host for host in topology.hosts[1:] if host not in peers]:
                STOP.check()
                if time.monotonic() > deadline:
                    raise TrainingError(_missing(missing, wait_s))
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    connection.settimeout(5)
                    if (host := _named(connection)) in missing:
                        peers[host] = connection
                    else:
                        connection.close()  # No host of this job: something that looks for open ports, say.
    except (Stopped, TrainingError) as error:
        _dismiss(peers, Casualty.of(error, place=f"host {topology.current}", asked=True))
        raise
    for connection in peers.values():
        connection.settimeout(None)
        _send(connection, {"go": True})
    return peers


def _dismiss(peers: dict[str, socket.socket], failure: Casualty) -> None:
    """Tell those that came why there will be no training."""
    for connection in peers.values():
        with connection, contextlib.suppress(OSError):
            _send(connection, {"failed": failure.to_json()})


def _call(topology: Topology, deadline: float, *, wait_s: float, port: int) -> socket.socket:
    leader = topology.hosts[0]
    connection = None
    while connection is None:
        STOP.check()
        if time.monotonic() > deadline:
            raise TrainingError(_missing([leader], wait_s))
        try:
            connection = socket.create_connection((leader, port), timeout=5)
        except OSError:  # Names of other hosts are not known at once, either.
            time.sleep(_RETRY_S)
    try:
        # The leader says when all are there, or who is not: by its own time, which may have begun after ours.
        connection.settimeout(wait_s + _GRACE_S)
        _send(connection, {"host": topology.current})
        answer = json.loads(_line(connection))
    except TimeoutError as error:
        connection.close()
        waited = f"within {wait_s + _GRACE_S:g} s whether all hosts are there"
        raise TrainingError(f"host {leader} answers, but did not say {waited}; its log says why") from error
    except (OSError, ValueError) as error:
        connection.close()
        raise TrainingError(f"host {leader} went away while the hosts gathered; its log says why") from error
    if "failed" in answer:
        connection.close()
        raise Casualty(**answer["failed"]).error()
    connection.settimeout(None)
    return connection


def _server(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise TrainingError(f"port {port}, at which hosts meet, cannot be opened: {error.strerror}") from error


def _named(connection: socket.socket) -> str:
    """The host that calls; empty where it does not say so in our way."""
    try:
        value = json.loads(_line(connection))
    except (OSError, ValueError):
        return ""
    return str(value.get("host", "")) if isinstance(value, dict) else ""


def _missing(hosts: Sequence[str], wait_s: float) -> str:
    return f"waited {wait_s:g} s in vain for host(s) {', '.join(hosts)}; look at their logs, and at the security group"


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _LINE_BYTES:
        byte = connection.recv(1)
        if not byte:
            raise OSError("the connection was closed")
        data += byte
    return data
