"""A ResNet's forward pass as CPUs train it best: in oneDNN's own layout, with frozen BatchNorm folded away.

oneDNN computes convolutions best on blocks of channels. Tensors that lie otherwise are copied into blocks and back, or
computed on in slower ways; those that stay in blocks from the first layer to the last spare both (Tensor.to_mkldnn,
https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to_mkldnn.html).
"""

from __future__ import annotations

import platform
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

from train.model import branch


def as_trained(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """The network to train: a ResNet's `Blocked` in float32 (`dtype` None) on x86-64's cores, else the model itself."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype is not None or platform.machine() != "x86_64" or not available:
        return model
    # As oneDNN gives the gradients: what reads both, such as the optimiser, reads them in the order of memory.
    model.to(memory_format=torch.contiguous_format)
    return Blocked(model)


class Blocked(nn.Module):
    """Photos (batch, 3, height, width) -> logits (batch, classes), by the model's weights and running figures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, photos: Tensor) -> Tensor:
        net: Any = self.model
        maps = net.maxpool(functional.relu_(_convolved(photos.to_mkldnn(), net.conv1, net.bn1)))
        for block in chain(net.layer1, net.layer2, net.layer3, net.layer4):
            maps = _block(maps, block)
        return net.fc(net.avgpool(maps.to_dense()).flatten(1))  # type: ignore[no-any-return]


def _block(maps: Tensor, block: BasicBlock | Bottleneck) -> Tensor:
    short_cut = maps if block.downsample is None else _convolved(maps, block.downsample[0], block.downsample[1])
    *first, last = branch(block)
    for conv, norm in first:
        maps = functional.relu_(_convolved(maps, conv, norm))
    return functional.relu_(_convolved(maps, *last) + short_cut)


def _convolved(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Convolution and BatchNorm; where that keeps its figures, they go into the convolution's weights and bias."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return norm(conv(maps))  # type: ignore[no-any-return]
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = conv.weight * factor.view(-1, 1, 1, 1)
    return functional.conv2d(maps, weight, norm.bias - norm.running_mean * factor, conv.stride, conv.padding)
