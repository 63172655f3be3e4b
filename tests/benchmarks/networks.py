"""Networks and photos for the benchmarks: ResNets with random weights, exported and quantised as ours are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from container.artifact import NETWORK, Manifest, save_artifact
from container.preprocessing import Preprocessing
from tests.support import encoded, picture
from train.channels import Photo
from train.graph import resnet_graph
from train.quantization import quantize

CLASSES = 133
SPEC = Preprocessing()


def photos(width: int, height: int, count: int) -> list[bytes]:
    """JPEGs of `width` x `height`: those in the folder KENNEL_PHOTOS, resized, or generated ones."""
    folder = os.environ.get("KENNEL_PHOTOS")
    paths = sorted(Path(folder).rglob("*.jpg"))[:count] if folder else []
    images = [Image.open(path).convert("RGB").resize((width, height)) for path in paths]
    found = [encoded(image, "JPEG", quality=85) for image in images]
    return found + generated(width, height, count - len(found))


def generated(width: int, height: int, count: int) -> list[bytes]:
    """JPEGs of smooth pictures with noise, which decode about as slowly as photos do."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(count):
        smooth = np.asarray(picture(width, height, seed), np.int16)
        noise = rng.integers(-24, 25, smooth.shape, np.int16)
        image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        found.append(encoded(image, "JPEG", quality=85))
    return found


def build(architecture: str, weights: Path) -> torch.nn.Module:
    """A torchvision ResNet whose random weights are also in the file `weights`."""
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(torchvision.models, architecture)(num_classes=CLASSES).eval()
    torch.save(model.state_dict(), weights)
    return model


def write_float32(model: torch.nn.Module, architecture: str, folder: Path) -> None:
    """An artifact of `model`."""
    _write(resnet_graph(model, image_size=SPEC.crop_size).SerializeToString(), architecture, folder)


def write_int8(model: torch.nn.Module, architecture: str, folder: Path, samples: list[bytes]) -> None:
    """The same in int8, quantised by what training calls, and calibrated with `samples`."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, f"{number}.jpg") for number in range(len(samples))]
        for path, sample in zip(paths, samples, strict=True):
            path.write_bytes(sample)
        network = resnet_graph(model, image_size=SPEC.crop_size).SerializeToString()
        _write(quantize(network, [Photo(path, 0) for path in paths], SPEC), architecture, folder)


def _write(network: bytes, architecture: str, folder: Path) -> None:
    manifest = Manifest(
        architecture=architecture,
        class_names=tuple(f"class {index}" for index in range(CLASSES)),
        preprocessing=SPEC,
        top_k=5,
    )
    save_artifact(folder, manifest, {NETWORK: lambda path: path.write_bytes(network)})
