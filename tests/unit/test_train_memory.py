"""The memory of a step is taken from the kernel once."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.training import ROOT

_PROGRAM = textwrap.dedent(
    """
    import resource, sys, torch
    from torch import nn
    from train.memory import keep_freed_memory
    if sys.argv[1] == "kept":
        keep_freed_memory()
    torch.manual_seed(0)
    # A ResNet's beginning: layers of 51 MB, more than malloc keeps by default.
    model = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 3, 2))
    photos = torch.ones(16, 3, 224, 224)
    def step():
        model.zero_grad()
        model(photos).sum().backward()
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step()
    before = faults()
    for _ in range(4):
        step()
    print((faults() - before) * resource.getpagesize() / 2**20 / 4)
    """
)


def _cleared_mib(kept: str) -> float:
    """What the kernel has to clear for a step."""
    command = [sys.executable, "-c", _PROGRAM, kept]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_pages_of_freed_tensors_are_cleared_anew_by_default_and_no_more() -> None:
    kept, by_default = _cleared_mib("kept"), _cleared_mib("by default")
    print(f"{kept:.1f} MiB, by default {by_default:.1f}")
    assert by_default > 50
    assert kept < by_default / 5
