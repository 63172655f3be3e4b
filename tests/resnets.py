"""A small ResNet's artifact as training writes it, with features and maps, for tests of what is answered from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from container.artifact import NETWORK, WEIGHTS, Manifest, save_artifact
from container.preprocessing import Preprocessing
from train.graph import resnet_graph

SPEC = Preprocessing.for_image_size(64)


def write_resnet(folder: Path, head: nn.Module | None = None, **fields: Any) -> torchvision.models.ResNet:
    """Save a whole artifact of 5 classes and random weights in `folder`; `fields` replace those of its manifest."""
    torch.manual_seed(0)
    model: torchvision.models.ResNet = getattr(torchvision.models, fields.get("architecture", "resnet18"))(
        num_classes=5
    )
    model.fc = head or model.fc
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = 0.1 * torch.randn(norm.num_features)
        norm.running_var = 0.5 + torch.rand(norm.num_features)
    model.eval()
    draft = Manifest(
        **{
            "architecture": "resnet18",
            "class_names": tuple("abcde"),
            "preprocessing": SPEC,
            "top_k": 3,
            **fields,
        }
    )
    network = resnet_graph(model, image_size=64).SerializeToString()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_artifact(
        folder,
        draft,
        {NETWORK: lambda path: path.write_bytes(network), WEIGHTS: lambda path: save_file(weights, path)},
    )
    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks are computed in one thread, whose sums are the same bits each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
