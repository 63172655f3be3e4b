"""How many processes decode photos: as many as the cores and /dev/shm allow."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Final

# Batches that torch's DataLoader keeps in flight for a worker, and the one being made; twice, since the next epoch's
# first are made while validation runs.
_BATCHES_A_WORKER: Final = 6
_MAX_WORKERS: Final = 8
# Processes hand their batches over through shared memory. Docker gives 64 MB of it unless --shm-size says more.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - not for files of ours
_CGROUP_V2: Final = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/cpu")


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the container's quota (cgroup v2 or v1)."""
    return math.ceil(min(len(os.sched_getaffinity(0)), max(1, _quota())))


def _quota() -> float:
    try:
        if _CGROUP_V2.is_file():
            quota, period = _CGROUP_V2.read_text().split()
        else:
            quota = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf


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
    fitting = int(0.8 * free / (processes * batch_bytes * _BATCHES_A_WORKER))
    if fitting >= wanted:
        return wanted
    print(
        f"warning: {shared_memory} has {free / 1e6:.0f} MB free, which is room for {fitting} of {wanted} loader "
        f"processes; give the container more with --shm-size {math.ceil(wanted * batch_bytes * 4 / 1e9)}g",
        flush=True,
    )
    return fitting
