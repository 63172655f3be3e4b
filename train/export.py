"""Trained weights -> an artifact that is known to answer as the trained network does."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models.resnet import ResNet

from container.artifact import (
    INT8_NETWORK,
    NETWORK,
    WEIGHTS,
    Manifest,
    load_manifest,
    save_artifact,
    verify_files,
)
from container.errors import ArtifactError, TrainingError
from container.preprocessing import Float32Array
from train.engine import session
from train.graph import resnet_graph

# Of max(1, |logit|). Two correct engines differ by 1e-6 to 1e-4: they add the same numbers in other orders.
_TOLERANCE: Final = 1e-3
_VERSIONED: Final = ("kennel", "torch", "torchvision", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The graphs of one set of weights; `int8` where it was made, `int8_ships` where it is what is served."""

    float32: bytes
    int8: bytes | None = None
    int8_ships: bool = False


def build_network(model: ResNet, *, image_size: int, samples: Float32Array) -> bytes:
    """The float32 graph. `samples` are preprocessed photos, (n, 3, height, width), on which the engines must agree.

    Raises TrainingError where ONNX Runtime's logits are not torch's.
    """
    model = model.cpu().eval()
    network: bytes = resnet_graph(model, image_size=image_size).SerializeToString()
    _check_agreement(network, model, samples)
    return network


def write_artifact(folder: Path, model: ResNet, networks: Networks, draft: Manifest) -> Manifest:
    """Write networks, weights and manifest; `draft` says all but the files and what follows from `networks`."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    writers: dict[str, Callable[[Path], object]] = {
        NETWORK: lambda path: path.write_bytes(networks.float32),
        WEIGHTS: lambda path: save_file(weights, path),
    }
    int8 = networks.int8
    if int8 is not None:
        writers[INT8_NETWORK] = lambda path: path.write_bytes(int8)
    served, precision = (INT8_NETWORK, "int8") if networks.int8_ships else (NETWORK, "float32")
    draft = replace(draft, network=served, precision=precision, versions=versions())
    return save_artifact(folder, draft, writers)


def _check_agreement(network: bytes, model: ResNet, samples: Float32Array) -> None:
    with torch.inference_mode():
        expected = model(torch.from_numpy(samples)).numpy()
    (found,) = session(network).run(["logits"], {"photos": samples})
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
        (logits,) = session(folder / manifest.network).run(
            ["logits"], {"photos": np.zeros((1, 3, side, side), np.float32)}
        )
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception.
        raise ArtifactError(f"{folder / manifest.network} does not run: {error}") from error
    if logits.shape != (1, len(manifest.class_names)):
        raise ArtifactError(
            f"{folder / manifest.network} answers {logits.shape} for {len(manifest.class_names)} classes"
        )
    return manifest


def versions() -> dict[str, str]:
    """Of what the network was made with."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # Run from a checkout, the project itself is not installed.
    return found
