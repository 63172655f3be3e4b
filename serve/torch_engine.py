"""torch on CUDA: the same network, rebuilt from the artifact's weights. The only file of serving that imports torch.

Not seen on a GPU by those who wrote it; its tests run it on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import ResNet

from container.artifact import WEIGHTS, Manifest
from container.errors import ArtifactError, OutOfMemoryError
from container.preprocessing import Float32Array
from serve.engine import FEATURES, LOGITS, MAPS


class TorchEngine:
    """One network on one device, in half precision where that is a GPU."""

    def __init__(self, folder: Path, manifest: Manifest, *, device: str) -> None:
        """Raises ArtifactError where the weights do not make the manifest's network, OutOfMemoryError."""
        self._device = torch.device(device)
        self._precision = _precision(self._device)
        network = _build(folder, manifest)
        with _memory_checked():
            network = network.to(device=self._device, dtype=self._precision)
        self._network = network.to(memory_format=torch.channels_last).eval()

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset((LOGITS, FEATURES, MAPS))

    def width(self, output: str) -> int | None:
        """The second dimension of an output."""
        linears = [module for module in self._network.fc.modules() if isinstance(module, nn.Linear)]
        return linears[-1].out_features if output == LOGITS else linears[0].in_features

    def run(self, photos: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        """(batch, 3, height, width) float32 -> the named outputs, float32. Raises OutOfMemoryError."""
        with torch.inference_mode(), _memory_checked():
            batch = torch.from_numpy(photos).to(self._device, self._precision, memory_format=torch.channels_last)
            found = self._forward(batch)
            return [found[name].float().cpu().numpy() for name in outputs]

    def _forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        network = self._network
        maps = network.maxpool(network.relu(network.bn1(network.conv1(batch))))
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            maps = layer(maps)
        features = network.avgpool(maps).flatten(1)
        return {MAPS: maps, FEATURES: features, LOGITS: network.fc(features)}


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


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
