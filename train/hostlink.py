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
from collections.abc import Sequence
from typing import Any, Final

from container.errors import TrainingError
from train.stop import STOP
from train.topology import Topology

PORT: Final = 7776
# Instances of one job come up within minutes of each other.
DEFAULT_WAIT_S: Final = 600
_RETRY_S: Final = 0.5


class HostLink:
    """Open connections by host name, and the first failure that came over one of them."""

    def __init__(self, current: str, peers: dict[str, socket.socket]) -> None:
        self.current = current
        self._peers = peers
        self._failure: str | None = None
        self._done: set[str] = set()
        self._lock = threading.Lock()
        for name, connection in peers.items():
            threading.Thread(target=self._listen, args=(name, connection), daemon=True).start()

    @property
    def failure(self) -> str | None:
        """Why another host's training ended, if it did."""
        return self._failure

    def fail(self, message: str) -> None:
        """Tell all other hosts."""
        self._tell({"failed": message}, but="")

    def finish(self, *, timeout_s: float) -> None:
        """Tell the others that this host is done, and wait until they are too or one fails."""
        self._tell({"done": True}, but="")
        deadline = time.monotonic() + timeout_s
        while self._failure is None and self._done < set(self._peers) and time.monotonic() < deadline:
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
                if message.get("done"):
                    self._done.add(name)
                if "failed" in message:
                    self._fail(message["failed"], source=name)
        if name not in self._done:
            self._fail(f"host {name} ended without a word; its log says why", source=name)

    def _fail(self, message: str, *, source: str) -> None:
        with self._lock:
            first, self._failure = self._failure is None, self._failure or message
        if first:
            self._tell({"failed": message}, but=source)


def meet(topology: Topology, *, wait_s: float = DEFAULT_WAIT_S, port: int = PORT) -> HostLink:
    """Wait until all hosts are there. Raises TrainingError that names those that are not."""
    deadline = time.monotonic() + wait_s
    if topology.leads:
        return HostLink(topology.current, _gather(topology, deadline, wait_s=wait_s, port=port))
    return HostLink(topology.current, {topology.hosts[0]: _call(topology, deadline, wait_s=wait_s, port=port)})


def _gather(topology: Topology, deadline: float, *, wait_s: float, port: int) -> dict[str, socket.socket]:
    peers: dict[str, socket.socket] = {}
    with socket.create_server(("", port), backlog=len(topology.hosts)) as server:
        server.settimeout(_RETRY_S)
        while missing := [host for host in topology.hosts[1:] if host not in peers]:
            STOP.check()
            if time.monotonic() > deadline:
                message = _missing(missing, wait_s)
                for connection in peers.values():
                    with connection, contextlib.suppress(OSError):
                        _send(connection, {"failed": message})
                raise TrainingError(message)
            with contextlib.suppress(TimeoutError, OSError, ValueError):
                connection, _ = server.accept()
                connection.settimeout(5)
                peers[json.loads(_line(connection))["host"]] = connection
    for connection in peers.values():
        connection.settimeout(None)
        _send(connection, {"go": True})
    return peers


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
        _send(connection, {"host": topology.current})
        # The leader answers when all are there, or names those that are not.
        connection.settimeout(max(1, deadline - time.monotonic()) + 30)
        answer = json.loads(_line(connection))
    except (OSError, ValueError) as error:
        connection.close()
        raise TrainingError(f"host {leader} went away while the hosts gathered; its log says why") from error
    if "failed" in answer:
        connection.close()
        raise TrainingError(answer["failed"])
    connection.settimeout(None)
    return connection


def _missing(hosts: Sequence[str], wait_s: float) -> str:
    return f"waited {wait_s:g} s in vain for host(s) {', '.join(hosts)}; look at their logs, and at the security group"


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise OSError("the connection was closed")
        data += byte
    return data
