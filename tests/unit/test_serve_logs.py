"""Lines into the pipe that HAProxy makes one which does not wait."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from serve.logs import log, write_to


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    write_to(writer)
    yield reader, writer
    write_to(1)
    os.close(reader)
    os.close(writer)


def fill(writer: int) -> int:
    written = 0
    while True:
        try:
            written += os.write(writer, b" " * 4096)
        except BlockingIOError:
            return written


def test_a_line_that_the_pipe_has_no_room_for_is_dropped_and_the_next_is_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    filled = fill(writer)
    log("worker", "dropped")
    assert not os.read(reader, 2 * filled).strip()
    log("worker", "whole")
    assert json.loads(os.read(reader, 4096))["message"] == "whole"


def test_a_line_that_is_longer_than_the_room_in_the_pipe_is_finished(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    filled = fill(writer)
    os.read(reader, 8192)
    thread = threading.Thread(target=log, args=("worker", "failed"), kwargs={"traceback": "x" * 100_000})
    thread.start()
    time.sleep(0.2)  # It has begun, and waits for room.
    found = b""
    while not found.endswith(b"\n"):
        found += os.read(reader, filled)
    thread.join()
    assert len(json.loads(found)["traceback"]) == 100_000
