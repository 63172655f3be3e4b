"""How many processes decode photos: as many as the cores and /dev/shm allow."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Final

from container.cgroup import usable_cpus

# Batches that torch's DataLoader keeps in flight for a worker, and the one being made; twice, since the next epoch's
# first are made while validation runs.
_BATCHES_A_WORKER: Final = 6
_MAX_WORKERS: Final = 8
_SHARE: Final = 0.8  # of shared memory, that loaders may fill
# Processes hand their batches over through shared memory. Docker gives 64 MB of it unless --shm-size says more.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - not for files of ours


def usable_cores(root: Path = Path("/")) -> int:
    """Threads that can run at once, by affinity and by the container's quota; at least 1."""
    return max(1, round(usable_cpus(root)))


def threads_within_quota(root: Path = Path("/")) -> int:
    """For an engine that counts the host's cores by itself: 0, its own choice, unless a quota leaves it fewer."""
    cores = usable_cores(root)
    return cores if cores < len(os.sched_getaffinity(0)) else 0


def largest_batch_bytes(batch_size: int, crop_size: int) -> int:
    """The size of the largest batch that a loader hands over: bytes of training, as evaluation's quarter of float32."""
    return max(batch_size, 4) * 3 * crop_size**2


def worker_count(
    requested: int, *, batch_bytes: int, cuda: bool, processes: int = 1, shared_memory: Path = _SHARED_MEMORY
) -> int:
    """Obey `requested` (-1: choose), but never fill /dev/shm: a worker that does dies of SIGBUS.

    `batch_bytes` is the size of the largest batch that is handed over; `processes` share the cores and the memory.
    """
    cores = max(1, usable_cores() // processes)
    # Without a GPU the cores compute too; one is left to them.
    wanted = requested if requested >= 0 else min(_MAX_WORKERS, cores if cuda else max(1, cores - 1))
    free = shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else 0
    each = processes * batch_bytes * _BATCHES_A_WORKER / _SHARE
    fitting = int(free / each)
    if fitting >= wanted:
        return wanted
    print(
        f"warning: {shared_memory} has {free / 1e6:.0f} MB free, which is room for {fitting} of {wanted} loader "
        f"processes; give the container more with --shm-size {math.ceil(wanted * each / 2**30)}g",
        flush=True,
    )
    return fitting
