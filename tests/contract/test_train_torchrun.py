"""torchrun, started by the user (docs/contract.md, line 79): its processes train together, as one job."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.artifact import MANIFEST, load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.training import SMALL, arguments, run_train, write_digits
from train.rank import one_of_several

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train")


@pytest.fixture
def paths(tmp_path: Path) -> SageMakerPaths:
    paths = SageMakerPaths(tmp_path)
    write_digits(paths.channel("training"), per_class=12)
    return paths


def test_two_processes_of_torchrun_leave_one_artifact(paths: SageMakerPaths) -> None:
    quick = arguments({**SMALL, "batch_size": "8", "workers": "0"})
    code, output = run_train(paths.base, *quick, program=TORCHRUN)
    assert code == 0, output
    assert "in 2 process(es)" in output
    assert output.count("validation:accuracy=") == 1
    verify_files(paths.model, load_manifest(paths.model))
    assert not paths.failure.exists()


def test_a_failure_of_torchruns_processes_is_one_sentence(paths: SageMakerPaths) -> None:
    code, output = run_train(paths.base, "--epoch", "3", program=TORCHRUN)
    assert code != 0, output
    assert paths.failure.read_text().startswith("hyperparameter 'epoch' is unknown; did you mean 'epochs'?")
    assert not (paths.model / MANIFEST).exists()


def test_what_the_first_process_to_fail_says_is_the_reason(paths: SageMakerPaths) -> None:
    """The second process finds nothing to train on; the first then loses it in the midst of their talk."""
    program = (
        "import os, sys, train.sets\n"
        "from container.errors import DataError\n"
        "def broken(*_, **__): raise DataError('no photos on this host')\n"
        "if os.environ['RANK'] == '1': train.sets.open_photo_sets = broken\n"
        "from train.__main__ import run\n"
        "run()\n"
    )
    script = paths.base / "program.py"
    script.write_text(program)
    torchrun = (*TORCHRUN[:-2], str(script))
    code, output = run_train(paths.base, *arguments(SMALL), program=torchrun)
    assert code != 0, output
    assert paths.failure.read_text() == "no photos on this host"


def test_variables_by_halves_are_one_sentence(paths: SageMakerPaths) -> None:
    code, output = run_train(paths.base, *arguments(SMALL), env={"WORLD_SIZE": "2", "RANK": "0"})
    assert code == 1, output
    assert "torchrun's other variables are not all there (LOCAL_RANK, " in paths.failure.read_text()
    assert "Traceback" not in output


def test_one_process_of_torchrun_is_a_plain_training() -> None:
    assert [one_of_several(env) for env in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"})] == [False, False, True]
