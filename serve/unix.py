"""HTTP over a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class UnixConnection(http.client.HTTPConnection):
    """An http.client connection to a socket file."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def connect(address: str, *, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to `unix:/path` or `http://host:port`."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return UnixConnection(Path(rest), timeout_s=timeout_s)
    return http.client.HTTPConnection(rest.removeprefix("//"), timeout=timeout_s)


def request(
    address: str, method: str, path: str, value: dict[str, Any] | None = None, *, timeout_s: float
) -> tuple[int, bytes]:
    """One call with an optional JSON body; returns status and body. Raises OSError or HTTPException."""
    connection = connect(address, timeout_s=timeout_s)
    try:
        body = None if value is None else json.dumps(value)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
