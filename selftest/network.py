"""The tiny network that ships with the image: made when the image is built, with the answers that it gave there.

`python -m selftest.network [FOLDER]` writes it: the Dockerfile into this package, `selftest` elsewhere where that was
not done.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from container.artifact import NETWORK, WEIGHTS, Manifest, save_artifact
from container.preprocessing import Preprocessing
from selftest.engines import ANSWERS, FOLDER
from train.graph import resnet_graph

_SIZE: Final = 32
_WIDTHS: Final = (4, 4, 8, 16, 32)
_CLASSES: Final = ("red", "green", "blue")


def write(folder: Path) -> None:
    """Make the artifact, as training would, with torch's answers beside it."""
    model = tiny_resnet()
    photos = torch.rand(8, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1))
    answers = {"photos": photos, "logits": logits(model, photos)}
    graph = resnet_graph(model, image_size=_SIZE).SerializeToString()
    manifest = Manifest(
        architecture="tiny", class_names=_CLASSES, preprocessing=Preprocessing.for_image_size(_SIZE), top_k=3
    )
    save_artifact(
        folder,
        manifest,
        {
            NETWORK: lambda path: path.write_bytes(graph),
            WEIGHTS: lambda path: save_file(model.state_dict(), path),
            ANSWERS: lambda path: save_file(answers, path),
        },
    )


def tiny_resnet() -> ResNet:
    """torchvision's ResNet with one narrow block a stage, and BatchNorm that has something to do."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(_CLASSES))
    model.conv1, model.bn1 = nn.Conv2d(3, _WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(_WIDTHS[0])
    for stage, (before, after) in enumerate(pairwise(_WIDTHS), start=1):
        stride = 1 if stage == 1 else 2
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        block = BasicBlock(before, after, stride, None if before == after else shortcut)
        setattr(model, f"layer{stage}", nn.Sequential(block))
    model.fc = nn.Linear(_WIDTHS[-1], len(_CLASSES))
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:  # biases, and BatchNorm's scales and statistics: above 0
            tensor.uniform_(0.1, 1, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return model.eval()


def load(folder: Path) -> ResNet:
    model = tiny_resnet()
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()


def logits(model: ResNet, photos: Tensor) -> Tensor:
    """(batch, 3, height, width) -> (batch, classes) on the CPU, computed where the model is."""
    with torch.inference_mode():
        answer: Tensor = model(photos.to(next(model.parameters()).device))
    return answer.cpu().clone()


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
