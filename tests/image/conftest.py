"""One small training in the container gives the artifact that the serving tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo_data import hold_out, photos_by_class, write_digits
from tests.containers import Engine

QUICK = (
    *("--architecture", "resnet18", "--pretrained", "false"),
    *("--image-size", "32", "--epochs", "1", "--batch-size", "32"),
)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`training` and `held-out`, each with the ten digits as folders of PNG files; a fifth of scikit-learn's set."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "all")
    fifth = {name: photos[::5] for name, photos in photos_by_class(folder / "all").items()}
    hold_out(fifth, training=folder / "training", held_out=folder / "held-out")
    return folder


@pytest.fixture(scope="session")
def artifact(engine: Engine, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `docker run kennel train` left in /opt/ml/model, with nothing else mounted than the photos."""
    model = tmp_path_factory.mktemp("model")
    model.chmod(0o755)
    mounts = ("--volume", f"{digits / 'training'}:/opt/ml/input/data/training:ro", "--volume", f"{model}:/opt/ml/model")
    result = engine.run("train", *QUICK, options=mounts)
    assert result.returncode == 0, result.stdout + result.stderr
    return model
