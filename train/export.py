"""Trained weights -> an artifact that is known to answer as the trained network does."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torchvision.models.resnet import ResNet

from container.artifact import (
    NETWORK,
    WEIGHTS,
    Manifest,
    load_manifest,
    save_artifact,
    verify_files,
)
from container.errors import ArtifactError, TrainingError
from container.preprocessing import Float32Array, Preprocessing
from train.config import TrainConfig
from train.graph import resnet_graph

# Of max(1, |logit|). Two correct engines differ by 1e-6 to 1e-4: they add the same numbers in other orders.
_TOLERANCE: Final = 1e-3
_VERSIONED: Final = ("kennel", "torch", "torchvision", "onnxruntime", "numpy", "pillow")


def export(
    model: ResNet,
    config: TrainConfig,
    folder: Path,
    *,
    class_names: Sequence[str],
    spec: Preprocessing,
    samples: Float32Array,
    metrics: Mapping[str, float],
) -> Manifest:
    """Write the artifact. `samples` are preprocessed photos, (n, 3, height, width), on which the engines must agree.

    Raises TrainingError where ONNX Runtime's logits are not torch's.
    """
    model = model.cpu().eval()
    network = resnet_graph(model, image_size=spec.crop_size).SerializeToString()
    _check_agreement(network, model, samples)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    draft = Manifest(
        architecture=config.architecture,
        class_names=tuple(class_names),
        preprocessing=spec,
        top_k=config.top_k,
        metrics=metrics,
        hyperparameters=config.to_json(),
        versions=_versions(),
    )
    return save_artifact(
        folder,
        draft,
        {NETWORK: lambda path: path.write_bytes(network), WEIGHTS: lambda path: save_file(weights, path)},
    )


def _check_agreement(network: bytes, model: ResNet, samples: Float32Array) -> None:
    with torch.inference_mode():
        expected = model(torch.from_numpy(samples)).numpy()
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"photos": samples})
    worst = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    if not worst <= _TOLERANCE:
        raise TrainingError(
            f"the exported network does not answer as the trained one: logits differ by {worst:.2g} of their size, "
            f"at most {_TOLERANCE:g} is rounding; please report this with the architecture and image_size"
        )


def check_loadable(folder: Path) -> Manifest:
    """Load the artifact as serving will, and run it once. Raises ArtifactError."""
    manifest = load_manifest(folder)
    verify_files(folder, manifest)
    side = manifest.preprocessing.crop_size
    try:
        session = onnxruntime.InferenceSession(folder / manifest.network, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"photos": np.zeros((1, 3, side, side), np.float32)})
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception.
        raise ArtifactError(f"{folder / manifest.network} does not run: {error}") from error
    if logits.shape != (1, len(manifest.class_names)):
        raise ArtifactError(
            f"{folder / manifest.network} answers {logits.shape} for {len(manifest.class_names)} classes"
        )
    return manifest


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # Run from a checkout, the project itself is not installed.
    return versions
