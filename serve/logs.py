"""One JSON object a line on stdout: what CloudWatch, docker logs and people with jq can all read."""

from __future__ import annotations

import json
import os
import select
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_LONGEST_WAIT_S = 1.0
_file = 1


def write_to(file: int) -> None:
    """Have every later line written to this open file instead of stdout."""
    global _file
    _file = file


def log(source: str, message: str, **fields: Any) -> None:
    """Write one line; `source` is who speaks (serve, worker), `fields` are figures worth searching for.

    Where the reader lags and its pipe is full, the line is dropped, as HAProxy drops its own: it is HAProxy that makes
    the pipe, which all of us share, one that does not wait.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": time, "source": source, "message": message, **fields}
    rest = json.dumps(line).encode() + b"\n"
    with suppress(OSError):  # That nobody reads it any more is no reason to fail a request.
        rest = rest[os.write(_file, rest) :]
        # A pipe takes a line of more than 4 KiB in parts: once begun, it is finished, or the next would join it.
        while rest and select.select([], [_file], [], _LONGEST_WAIT_S)[1]:
            rest = rest[os.write(_file, rest) :]
