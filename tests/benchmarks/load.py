"""A closed-loop load: so many clients, each with one connection, each sending its next photo after its last answer."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

HEADERS = {"Content-Type": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Times in seconds; `statuses` counts the answers by status (0: none)."""

    requests_per_s: float
    p50: float
    p99: float
    statuses: Counter[int]


def run(port: int, photos: Sequence[bytes], *, clients: int, seconds: float, path: str = "/invocations") -> Result:
    """Measure after a warm-up of a fifth of the time."""
    warm = time.monotonic() + seconds / 5
    end = warm + seconds
    times: list[float] = []
    statuses: Counter[int] = Counter()
    threads = [
        threading.Thread(
            target=_client, args=(port, path, photos[index % len(photos) :] or photos, warm, end, times, statuses)
        )
        for index in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(times) < 2:
        raise RuntimeError(f"no answers within {seconds} s: {statuses}")
    return Result(
        requests_per_s=len(times) / seconds,
        p50=statistics.median(times),
        p99=sorted(times)[min(len(times) - 1, round(len(times) * 0.99))],
        statuses=statuses,
    )


def once(port: int, photo: bytes, path: str = "/invocations") -> int:
    """One photo on a connection of its own; returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, photo, HEADERS)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def _client(
    port: int,
    path: str,
    photos: Sequence[bytes],
    warm: float,
    end: float,
    times: list[float],
    statuses: Counter[int],
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    turn = 0
    while (started := time.monotonic()) < end:
        try:
            connection.request("POST", path, photos[turn % len(photos)], HEADERS)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        turn += 1
        statuses[status] += 1
        if status == 200 and warm < (now := time.monotonic()) <= end:
            times.append(now - started)
    connection.close()
