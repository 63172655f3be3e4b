"""A job that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from container.artifact import load_manifest
from container.contract import SageMakerPaths
from tests.training import SMALL, arguments, run_train, start_train, write_digits
from train.model import build_resnet

pytestmark = pytest.mark.slow

JOB = {**SMALL, "epochs": "6", "batch_size": "8", "workers": "0", "checkpoint_seconds": "0", "quantize": "never"}
# What people run who set nothing: the head first, then all layers, with loader processes.
GRADUAL = {**JOB, "pretrained": "true", "workers": "2"}


def job(base: Path) -> SageMakerPaths:
    paths = SageMakerPaths(base)
    write_digits(paths.channel("training"), per_class=14)
    paths.channel("pretrained").mkdir()
    torch.manual_seed(0)
    torch.save(build_resnet("resnet18", 1000).state_dict(), paths.channel("pretrained") / "resnet18.pth")
    paths.checkpoints.mkdir()
    return paths


def wait_for_line(process: subprocess.Popen[str], start: str | tuple[str, ...]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"the job ended before it printed {start!r}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("given", "kills", "under_way"),
    [(JOB, 20, "training resnet18"), (GRADUAL, 6, ("head alone", "resumed in epoch"))],
    ids=["full", "gradual"],
)
def test_a3_37_sigkill_at_random_moments_changes_no_bit(
    tmp_path: Path, given: dict[str, str], kills: int, under_way: str | tuple[str, ...]
) -> None:
    """Every start makes some way, is killed at a moment of its own, and the next goes on from there."""
    words = arguments({**given, "report": "false"})
    whole, killed = job(tmp_path / "whole"), job(tmp_path / "killed")
    code, output = run_train(whole.base, *words)
    assert code == 0, output
    rng = random.Random(0)
    for number in range(kills):
        with start_train(killed.base, *words) as process:
            if number % 5:  # Every fifth is killed while it still imports, or looks at the photos.
                wait_for_line(process, under_way)
            time.sleep(rng.uniform(0, 3))
            process.kill()
            process.communicate()
    code, output = run_train(killed.base, *words)
    assert code == 0, output
    assert "resumed in epoch" in output
    one, two = load_manifest(whole.model), load_manifest(killed.model)
    assert one.files == two.files
    assert one.metrics == two.metrics
