"""The artifact that training writes, and the checks that stand before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from container.artifact import MANIFEST, WEIGHTS, Manifest
from container.errors import ArtifactError, TrainingError
from container.preprocessing import Float32Array, Preprocessing, preprocess
from tests.support import odd_photos
from train.channels import Photo
from train.config import TrainConfig
from train.data import EvaluationPhotos, Normaliser, evaluation_loader
from train.export import Networks, build_network, check_loadable, write_artifact
from train.loop import predict
from train.model import build_resnet

SPEC = Preprocessing.for_image_size(32)
CONFIG = TrainConfig(architecture="resnet18", pretrained=False, image_size=32)
NAMES = ("ants", "bees", "wasps")


def write(folder: Path, samples: Float32Array | None = None) -> Manifest:
    torch.manual_seed(0)
    model = build_resnet("resnet18", 3)
    samples = np.zeros((1, 3, 32, 32), np.float32) if samples is None else samples
    network = build_network(model, image_size=32, samples=samples)
    draft = Manifest(
        architecture="resnet18",
        class_names=NAMES,
        preprocessing=SPEC,
        top_k=2,
        hyperparameters=CONFIG.to_json(),
        metrics={"validation:accuracy": 0.5},
    )
    return write_artifact(folder, model, Networks(float32=network), draft)


def test_an_artifact_describes_itself(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    assert check_loadable(tmp_path) == manifest
    assert manifest.class_names == NAMES
    assert manifest.hyperparameters["image_size"] == 32
    assert {"torch", "torchvision", "onnxruntime"} <= set(manifest.versions)
    assert load_file(tmp_path / WEIGHTS)["fc.weight"].shape == (3, 512)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pth", ".pt", ".pkl")]


def test_evaluations_logits_are_what_is_served(tmp_path: Path) -> None:
    """big_vision's sentence about one operation in two places: "you'd be surprised how much these two differ"."""
    write(tmp_path / "model")
    for name, data in odd_photos().items():
        (tmp_path / name).write_bytes(data)
    photos = [Photo(tmp_path / name, 0) for name in odd_photos()]
    torch.manual_seed(0)
    loader = evaluation_loader(EvaluationPhotos(photos, SPEC), batch_size=5, workers=0)
    evaluated = predict(build_resnet("resnet18", 3), loader, Normaliser(SPEC, torch.device("cpu"))).logits
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    for photo, logits in zip(photos, evaluated, strict=True):
        (served,) = session.run(["logits"], {"photos": preprocess(photo.path.read_bytes(), SPEC)[None]})
        assert (np.abs(served[0] - logits) <= 1e-4 * np.maximum(1, np.abs(logits))).all(), photo.path.name


def test_an_export_that_disagrees_fails_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="logits differ"):
        write(tmp_path, np.full((1, 3, 32, 32), np.nan, np.float32))
    assert not (tmp_path / MANIFEST).exists()


def test_a_network_that_does_not_run_is_no_artifact(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a network")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        check_loadable(tmp_path)
    assert dataclasses.asdict(manifest)["network"] == "model.onnx"
