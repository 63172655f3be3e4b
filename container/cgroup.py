"""What this container may use of the host: its cgroup (version 1 or 2) and the cgroups around it. Standard library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> float:
    """CPUs by affinity and by the tightest quota, which may be a fraction."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def memory_limits(root: Path = Path("/")) -> Iterator[int]:
    """The limits in bytes, of which the tightest holds; none where there is none."""
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdigit():
                yield int(limit)


def _quotas(root: Path) -> Iterator[float]:
    for folder in _folders(root, "cpu"):
        if limit := _read(folder / "cpu.max"):  # version 2: "200000 100000" or "max 100000"
            quota, period = limit.split()
        else:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and int(quota) > 0 and period:
            yield int(quota) / int(period)


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
