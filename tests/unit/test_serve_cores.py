"""Who runs on which cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.cores import Cores
from tests.training import ROOT

ALL = os.sched_getaffinity(0)
_WORKER = """
import json, os, pathlib, sys
from serve.cores import Cores
cores = Cores(pathlib.Path(sys.argv[1]), workers=int(sys.argv[2]))
cores.use(own=True)
print(json.dumps(sorted(os.sched_getaffinity(0))), flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(claims: Path, workers: int) -> Iterator[set[int]]:
    """A process that is one of so many workers; yields the cores of its share, and is killed at the end."""
    command = [sys.executable, "-c", _WORKER, str(claims), str(workers)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield set(json.loads(process.stdout.readline()))
        finally:
            process.kill()


def of_thread(thread: threading.Thread) -> set[int]:
    assert thread.native_id
    return os.sched_getaffinity(thread.native_id)


def test_workers_share_the_cores_and_a_new_one_takes_a_dead_one_s_share(tmp_path: Path) -> None:
    with worker(tmp_path / "claims", 2) as first:
        with worker(tmp_path / "claims", 2) as second:
            assert first | second == ALL
            assert not first & second or len(ALL) == 1
        with worker(tmp_path / "claims", 2) as third:
            assert third == second


def test_more_workers_than_cores_have_one_each(tmp_path: Path) -> None:
    with worker(tmp_path / "claims", 2 * len(ALL)) as first:
        assert len(first) == 1


def test_a_worker_alone_has_all_cores(tmp_path: Path) -> None:
    with worker(tmp_path / "claims", 1) as only:
        assert only == ALL


def test_all_threads_move_and_come_back(tmp_path: Path) -> None:
    stop = threading.Event()
    helper = threading.Thread(target=stop.wait)
    helper.start()
    try:
        cores = Cores(tmp_path / "claims", workers=len(ALL))
        cores.use(own=True)
        assert len(os.sched_getaffinity(0)) == 1
        assert of_thread(helper) == os.sched_getaffinity(0)
        cores.use(own=False)
        assert of_thread(helper) == os.sched_getaffinity(0) == ALL
    finally:
        os.sched_setaffinity(0, ALL)
        stop.set()
        helper.join()
