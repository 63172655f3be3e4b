"""The CPUs and the memory that this container may use, from its cgroup (version 1 or 2) and the host."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from container.cgroup import memory_limits, usable_cpus

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
        memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits(root)]
        gpus = _gpus(root, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return cls(cpus=usable_cpus(root), memory_bytes=min(memory), gpus=gpus)


def _gpus(root: Path, visible: str | None) -> int:
    """Device files of the driver, as far as CUDA_VISIBLE_DEVICES (a list; empty or -1 for none) lets them be seen."""
    present = len(list((root / "dev").glob("nvidia[0-9]*")))
    if visible is None:
        return present
    chosen = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return min(present, len(chosen))


def driver_version(root: Path = Path("/")) -> str:
    """NVIDIA's driver, such as "550.163.01"; empty where there is none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="ascii")
    except OSError:
        return ""
    found = re.search(r"[0-9]+(\.[0-9]+)+", text)
    return found[0] if found else ""
