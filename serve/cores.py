"""How the threads of several workers share the cores: a lone request has all of them, queued ones a share each."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Cores:
    """The cores of one of a model's workers.

    Two cores answer a lone caller in little more than half the time. Where requests queue, every core has work of its
    own, and threads that go from core to core for each other's layers only cool the caches.
    """

    def __init__(self, claims: Path, *, workers: int) -> None:
        """Claim a share for as long as this process lives; `claims` is a file that is the workers' own.

        To be made when all threads that are to be moved run already.
        """
        # Never closed: the kernel drops a claim when its process ends or closes the file.
        place = _claim(os.open(claims, os.O_WRONLY | os.O_CREAT, 0o600))
        cores = sorted(os.sched_getaffinity(0))
        self._all, self._own = set(cores), set(cores[place % len(cores) :: workers])
        self._used = self._all
        self._threads = running_threads()

    def use(self, *, own: bool) -> None:
        """Run on this worker's share alone, or on all cores."""
        wanted = self._own if own else self._all
        if wanted != self._used:
            _move(self._threads, wanted)
            self._used = wanted


def _claim(file: int) -> int:
    """The first place that no living process has claimed."""
    place = 0
    while True:
        with suppress(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return place
        place += 1


def _move(those: Iterable[int], cores: set[int]) -> None:
    for thread in those:
        with suppress(OSError):  # A sandbox may not know it: slower, and right.
            os.sched_setaffinity(thread, cores)


def running_threads() -> set[int]:
    """Of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def let_others_finish(helpers: Iterable[int]) -> None:
    """Let ONNX Runtime's own threads take cores that are free, and none from a request that runs.

    A network's thread divides each layer with its helpers. Where every core has a worker's, a helper that wakes would
    push another worker's aside, and the one that it helps would spin until it is done. SCHED_BATCH does not push
    (sched(7)); where it comes too late, the layer is done without it.
    """
    for thread in helpers:
        with suppress(OSError):  # As above.
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
