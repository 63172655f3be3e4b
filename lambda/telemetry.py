"""One JSON line a call: the log record, and in the same line CloudWatch's metrics (embedded metric format).

Powertools would do this too, for some 50 ms more of each cold start and 1.8 MB more to unpack (tests/benchmarks).
Traces need no code: with active tracing Lambda writes the segments, and boto3 passes the trace's header on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from errors import Refusal

NAMESPACE: Final = "Kennel/Lambda"
_METRICS: Final = {
    "total_ms": "Milliseconds",
    "endpoint_ms": "Milliseconds",
    "photo_bytes": "Bytes",
    "cold_start": "Count",
    "not_confident": "Count",
    "client_error": "Count",
    "server_error": "Count",
    "throttled": "Count",
}


class Record:
    """What is known of one call; printed once, at its end."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._started = time.monotonic()
        self._fields: dict[str, Any] = {"request_id": request_id}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def note(self, **fields: Any) -> None:
        self._fields.update(fields)

    def status(self, status: int) -> None:
        self.note(
            status=status,
            client_error=int(400 <= status < 500),
            server_error=int(status >= 500),
            throttled=int(status == 429),
        )

    def refused(self, refusal: Refusal) -> None:
        """Note what the caller is told, and the cause, which he is not told."""
        self.status(refusal.status)
        self.note(code=refusal.code, message=refusal.message)
        if (cause := refusal.__cause__) is not None:
            self.note(cause=f"{type(cause).__name__}: {cause}")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.note(**{name: _ms_since(started)})

    def print(self) -> None:
        self.note(total_ms=_ms_since(self._started))
        level = "ERROR" if self._fields.get("server_error") else "INFO"
        # Lambda filters JSON lines by level only where they tell the time in this form.
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"timestamp": timestamp, "level": level, **self._fields, **_embedded(self._fields)}
        print(json.dumps(line), flush=True)


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _embedded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The members that make CloudWatch read metrics out of a log line ("Embedded metric format specification")."""
    metrics = [{"Name": name, "Unit": unit} for name, unit in _METRICS.items() if name in fields]
    directive = {"Namespace": NAMESPACE, "Dimensions": [["function"]], "Metrics": metrics}
    return {
        "function": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"),
        "_aws": {"Timestamp": round(time.time() * 1000), "CloudWatchMetrics": [directive]},
    }
