"""torch on CUDA: the same network, rebuilt from the artifact's weights. The only file of serving that imports torch.

Each BatchNorm is folded into its convolution, as in the ONNX graph, before the convolutions are rounded to half
precision; the mean over the maps and the head stay float32, since two or three decimals would not do for logits.

Not seen on a GPU by those who wrote it; its tests run it on a CPU, in half precision too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import ResNet

from container.artifact import WEIGHTS, Manifest
from container.errors import ArtifactError, OutOfMemoryError, ServingError
from container.preprocessing import Float32Array
from serve.engine import FEATURES, LOGITS, MAPS
from serve.machine import driver_version


class TorchEngine:
    """One network on one device."""

    def __init__(self, folder: Path, manifest: Manifest, *, device: str, precision: torch.dtype | None = None) -> None:
        """`precision` of the convolutions, None: what suits the device.

        Raises ArtifactError where the weights do not make the manifest's network, ServingError where CUDA does not
        work, OutOfMemoryError.
        """
        self._device = torch.device(device)
        with _memory_checked():
            self._precision = precision or _precision(self._device)
            network = _folded(_build(folder, manifest).eval())
            head = network.fc.to(self._device)
            network.fc = nn.Identity()
            self._network = network.to(self._device, self._precision, memory_format=torch.channels_last)
            self._head = head

    def __str__(self) -> str:
        where = "the CPU" if self._device.type == "cpu" else torch.cuda.get_device_name(self._device)
        precision = str(self._precision).removeprefix("torch.")
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) in {precision} on {where}"

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset((LOGITS, FEATURES, MAPS))

    def width(self, output: str) -> int | None:
        """The second dimension of an output."""
        linears = [module for module in self._head.modules() if isinstance(module, nn.Linear)]
        return linears[-1].out_features if output == LOGITS else linears[0].in_features

    def run(self, photos: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        """(batch, 3, height, width) float32 -> the named outputs, float32. Raises OutOfMemoryError."""
        with torch.inference_mode(), _memory_checked():
            batch = torch.from_numpy(photos).to(self._device, self._precision, memory_format=torch.channels_last)
            found = self._forward(batch)
            return [found[name].cpu().numpy() for name in outputs]

    def _forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        network = self._network
        maps = network.maxpool(network.relu(network.conv1(batch)))
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            maps = layer(maps)
        maps = maps.float()
        features = network.avgpool(maps).flatten(1)
        return {MAPS: maps, FEATURES: features, LOGITS: self._head(features)}


def _precision(device: torch.device) -> torch.dtype:
    """Raises ServingError where `device` is a GPU that torch cannot use."""
    if device.type != "cuda":
        return torch.float32
    try:
        capability = torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError) as error:
        raise ServingError(
            f"this machine shows a GPU that torch {torch.__version__} cannot use (driver: {driver_version()}): "
            f"{error}; take a host with a newer driver (InferenceAmiVersion), or serve on CPUs (CUDA_VISIBLE_DEVICES=)"
        ) from error
    # torch.cuda.is_bf16_supported() is true of older ones as well, which only emulate it.
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def _folded(network: ResNet) -> ResNet:
    """The network in evaluation mode, with an Identity in place of each BatchNorm (the stem's `bn1` is not called)."""
    for module in list(network.modules()):
        for (name, convolution), (next_name, following) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, following))
                setattr(module, next_name, nn.Identity())
    return network


def _build(folder: Path, manifest: Manifest) -> ResNet:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {WEIGHTS}, from which torch rebuilds the network on a GPU")
    weights = load_file(path)
    try:
        network: ResNet = getattr(torchvision.models, manifest.architecture)(num_classes=len(manifest.class_names))
        network.fc = _head(weights)
        network.load_state_dict(weights)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path} are not the weights of a {manifest.architecture}: {error}") from error
    return network


def _head(weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """One linear layer, or a sequence whose linear layers have ReLU in the gaps between their numbers."""
    if "fc.weight" in weights:
        return _linear(weights["fc.weight"])
    numbers = sorted(int(name.split(".")[1]) for name in weights if name.startswith("fc.") and name.endswith("weight"))
    layers = {number: _linear(weights[f"fc.{number}.weight"]) for number in numbers}
    return nn.Sequential(*[layers.get(number, nn.ReLU()) for number in range(numbers[-1] + 1)])


def _linear(weight: torch.Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0])


@contextmanager
def _memory_checked() -> Iterator[None]:
    """Translate CUDA's lack of memory, so that SageMaker unloads another model and tries again."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemoryError(f"the GPU has too little memory for this: {error}") from error
