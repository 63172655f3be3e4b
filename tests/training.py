"""What tests of training share: small channels, and the program `train` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from container.contract import SageMakerPaths

ROOT = Path(__file__).resolve().parent.parent
# A network and photos so small that an epoch takes seconds on one core.
SMALL = {"architecture": "resnet18", "pretrained": "false", "image_size": "32", "batch_size": "16", "epochs": "1"}


def write_digits(channel: Path, *, per_class: int, classes: int = 3, skip: int = 0) -> Path:
    """scikit-learn's handwritten digits as 8 x 8 PNG files in class folders; `skip` leaves out the first ones."""
    digits = load_digits()
    for label in range(classes):
        folder = channel / str(label)
        folder.mkdir(parents=True)
        images = digits.images[digits.target == label][skip : skip + per_class]
        for index, image in enumerate(images):
            Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{skip + index:03}.png")
    return channel


def write_config(paths: SageMakerPaths, hyperparameters: Mapping[str, str], channels: Sequence[str]) -> None:
    """SageMaker's three files, as the service writes them."""
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.hyperparameters.write_text(json.dumps(hyperparameters))
    entry = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    paths.input_data_config.write_text(json.dumps({name: entry for name in channels}))
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    paths.resource_config.write_text(json.dumps(hosts))


def arguments(hyperparameters: Mapping[str, str]) -> list[str]:
    return [word for name, value in hyperparameters.items() for word in (f"--{name.replace('_', '-')}", value)]


def start_train(
    base: Path, *words: str, program: Sequence[str] = ("-m", "train"), env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `train` on a tree below `base`, its output in one pipe."""
    here = {"PYTHONPATH": str(ROOT), "SAGEMAKER_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=base,
        env={**os.environ, **here, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_train(
    base: Path, *words: str, program: Sequence[str] = ("-m", "train"), env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `train` to its end; return exit code and output."""
    with start_train(base, *words, program=program, env=env) as process:
        output, _ = process.communicate(timeout=1200)  # pytest itself ends tests sooner
    return process.returncode, output
