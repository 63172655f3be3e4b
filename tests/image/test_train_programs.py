"""`docker run kennel doctor`, `tune` and `import-weights`: the programs beside `train`, as people call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from container.artifact import load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.containers import Engine
from tests.image.conftest import QUICK
from tests.training import write_digits
from train.model import build_resnet

pytestmark = pytest.mark.image


@pytest.fixture
def tree(tmp_path: Path) -> SageMakerPaths:
    paths = SageMakerPaths(tmp_path)
    write_digits(paths.channel("training"), per_class=10)
    for folder in (paths.model, paths.output_data):
        folder.mkdir(parents=True)
    return paths


def mounted(paths: SageMakerPaths) -> tuple[str, ...]:
    mounts = ((paths.channel("training"), "input/data/training:ro"), (paths.model, "model"), (paths.output, "output"))
    return tuple(word for path, place in mounts for word in ("--volume", f"{path}:/opt/ml/{place}"))


def test_doctor_prints_a_table_and_leaves_json(engine: Engine, tree: SageMakerPaths) -> None:
    (tree.channel("training") / "1" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    result = engine.run("doctor", options=(*mounted(tree), "--network", "none"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "unreadable, left out" in result.stdout
    assert [*json.loads((tree.output_data / "doctor.json").read_text())["unreadable"]] == [
        "/opt/ml/input/data/training/1/broken.jpg"
    ]


def test_tune_leaves_the_best_trials_artifact_and_report(engine: Engine, tree: SageMakerPaths) -> None:
    result = engine.run("tune", "--trials", "1", *QUICK, options=(*mounted(tree), "--network", "none"))
    assert result.returncode == 0, result.stdout + result.stderr
    manifest = load_manifest(tree.model)
    verify_files(tree.model, manifest)
    best = json.loads((tree.output_data / "tuning.json").read_text())["best"]
    assert manifest.hyperparameters["learning_rate"] == pytest.approx(best["hyperparameters"]["learning_rate"])
    assert (tree.output_data / "report.html").is_file()


def test_a_course_projects_model_becomes_an_artifact(engine: Engine, tmp_path: Path) -> None:
    """ResNet-50 with the head 2048-128-133, as `torch.save(model.state_dict(), "model.pth")` left it."""
    model = build_resnet("resnet50", 133)
    model.fc = nn.Sequential(nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 133))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "classes.txt").write_text("".join(f"breed {number}\n" for number in range(133)))
    result = engine.run(
        *("import-weights", "--weights", "/old/model.pth", "--classes", "/old/classes.txt"),
        options=("--volume", f"{tmp_path}:/old:ro", "--volume", f"{tmp_path / 'model'}:/opt/ml/model"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    manifest = load_manifest(tmp_path / "model")
    verify_files(tmp_path / "model", manifest)
    assert (manifest.architecture, manifest.head, len(manifest.class_names)) == ("resnet50", "mlp", 133)
