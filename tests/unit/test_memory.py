"""What the C library does with freed memory, by default and as training and serving have it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.training import ROOT

_CLEARED = """
    def cleared_mib(action, times):
        for _ in range(4):
            action()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            action()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return faults * resource.getpagesize() / 2**20 / times
"""
_STEPS = (
    _CLEARED
    + """
    import torch
    from torch import nn
    # A ResNet's beginning: layers of 51 MB, more than malloc keeps by default.
    model = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 3, 2))
    photos = torch.ones(16, 3, 224, 224)
    def step():
        model.zero_grad()
        model(photos).sum().backward()
    print(cleared_mib(step, times=4))
"""
)
_PHOTOS = """
    def resident_mib():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
    before, kept = resident_mib(), []
    for _ in range(10):
        photo = bytearray(b"x") * (16 * 2**20)
        kept.extend(bytes(2000) for _ in range(100))
        del photo
    print(resident_mib() - before)
"""
_COMMON_PHOTOS = (
    _CLEARED
    + """
    def photo():
        return [bytearray(600_000) for _ in range(4)]
    print(cleared_mib(photo, times=100))
"""
)


def _printed(program: str, setting: str = "") -> float:
    """What `program` prints in a process of its own, after the function `setting` of container.memory."""
    first = ["import resource", *([f"from container.memory import {setting}", f"{setting}()"] if setting else [])]
    command = [sys.executable, "-c", "\n".join(first) + textwrap.dedent(program)]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_training_s_memory_is_cleared_once() -> None:
    """MiB that the kernel clears for a step."""
    kept, by_default = _printed(_STEPS, "keep_freed_memory"), _printed(_STEPS)
    print(f"{kept:.1f} MiB, by default {by_default:.1f}")
    assert by_default > 50
    assert kept < by_default / 5


def test_small_objects_that_live_on_do_not_hold_large_blocks() -> None:
    """MiB by which a process has grown after ten large photos."""
    assert _printed(_PHOTOS) > 12
    assert _printed(_PHOTOS, "keep_large_blocks_apart") < 6


def test_a_common_photo_s_memory_is_kept_for_the_next() -> None:
    """MiB that the kernel clears for a photo."""
    assert _printed(_COMMON_PHOTOS) > 1
    assert _printed(_COMMON_PHOTOS, "keep_large_blocks_apart") < 0.1
