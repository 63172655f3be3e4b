"""The CPUs and the memory that this container may use, from its cgroup (version 1 or 2) and the host."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`cpus` may be a fraction, as a container engine's quota is; `gpus` are NVIDIA's, those hidden left out."""

    cpus: float
    memory_bytes: int
    gpus: int = 0

    @property
    def cores(self) -> int:
        """Threads that can run at once, at least 1."""
        return max(1, round(self.cpus))

    @classmethod
    def read(cls, root: Path = Path("/")) -> Machine:
        """The tightest of what host, affinity and every enclosing cgroup allow."""
        cpus = [float(len(os.sched_getaffinity(0))), *_quotas(root)]
        memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits(root)]
        return cls(cpus=min(cpus), memory_bytes=min(memory), gpus=_gpus(root, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _gpus(root: Path, visible: str | None) -> int:
    """Device files of the driver, as far as CUDA_VISIBLE_DEVICES (a list; empty or -1 for none) lets them be seen."""
    present = len(list((root / "dev").glob("nvidia[0-9]*")))
    if visible is None:
        return present
    chosen = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(present, len(chosen))


def driver_version(root: Path = Path("/")) -> str:
    """NVIDIA's driver, such as "550.163.01"; empty where there is none."""
    found = re.search(r"[0-9]+(\.[0-9]+)+", _read(root / "proc/driver/nvidia/version"))
    return found[0] if found else ""


def _quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, "cpu"):
        if limit := _read(folder / "cpu.max"):  # version 2: "200000 100000" or "max 100000"
            quota, period = limit.split()
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and int(quota) > 0 and period:
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdigit():
                yield int(limit)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Our cgroup's folder and its parents. Inside a container the path may be the host's, and only "/" is there."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in {controllers, controllers and controller}:  # "cpu,cpuacct", which not every system links to "cpu"
            mount = root / "sys/fs/cgroup" / name
            group = mount / path.lstrip("/")
            yield group
            while group != mount:
                group = group.parent
                yield group


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
