"""A torchvision ResNet -> an ONNX graph, written node by node.

torch.onnx.export takes 9 s for a ResNet-18 and 11 s for a ResNet-50 on two cores and leaves 65 to 175 nodes; this
takes a tenth of a second, folds every BatchNorm into its convolution, and names the tensors that serving asks for:

    photos    (batch, 3, height, width)   normalised input
    maps      (batch, channels, h, w)     what the last convolution block answers
    features  (batch, channels)           their mean over h and w
    logits    (batch, classes)            the head on the features

A class-activation map is `maps` weighted with the class's row of the head (Zhou et al. 2016, arXiv:1512.04150): it
costs the caller one small product, and costs nobody anything who does not ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from train.model import branch

OPSET: Final = 18
_IR_VERSION: Final = 10

Float64Array = npt.NDArray[np.float64]


def resnet_graph(model: ResNet, *, image_size: int) -> onnx.ModelProto:
    """The network in evaluation mode, float32, with a dynamic batch."""
    graph = _Graph()
    x = graph.convolution("photos", "conv1", model.conv1, model.bn1)
    x = graph.add("Relu", [x])
    x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    blocks = [
        (f"{layer}.{index}", block)
        for layer in ("layer1", "layer2", "layer3", "layer4")
        for index, block in enumerate(getattr(model, layer))
    ]
    for index, (name, block) in enumerate(blocks):
        x = graph.block(x, name, block, output="maps" if index == len(blocks) - 1 else None)
    x = graph.add("GlobalAveragePool", [x])
    x = graph.add("Flatten", [x], output="features")
    graph.head(x, model.fc)
    return graph.model(image_size, channels=_features(model.fc), classes=_classes(model.fc))


@dataclass
class _Graph:
    """Nodes and weights so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of what it gives."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: Float64Array) -> str:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def convolution(self, x: str, name: str, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> str:
        kernel, bias = fold_batchnorm(conv, bn)
        pad, stride = int(conv.padding[0]), int(conv.stride[0])
        inputs = [x, self.weight(f"{name}.weight", kernel), self.weight(f"{name}.bias", bias)]
        return self.add(
            "Conv", inputs, output=name, kernel_shape=list(conv.kernel_size), strides=[stride] * 2, pads=[pad] * 4
        )

    def block(self, x: str, name: str, block: BasicBlock | Bottleneck, *, output: str | None) -> str:
        """A residual block: two convolutions (BasicBlock) or three (Bottleneck) beside a short cut."""
        shortcut = x
        if block.downsample is not None:
            shortcut = self.convolution(x, f"{name}.downsample", block.downsample[0], block.downsample[1])
        steps = branch(block)
        for step, (conv, bn) in enumerate(steps, start=1):
            x = self.convolution(x, f"{name}.conv{step}", conv, bn)
            if step < len(steps):
                x = self.add("Relu", [x])
        return self.add("Relu", [self.add("Add", [x, shortcut])], output=output)

    def head(self, x: str, head: nn.Module) -> None:
        """One linear layer, or several with ReLU between them."""
        layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            weight, bias = (parameter.detach().double().cpu().numpy() for parameter in (layer.weight, layer.bias))
            inputs = [x, self.weight(f"head.{index}.weight", weight), self.weight(f"head.{index}.bias", bias)]
            x = self.add("Gemm", inputs, output="logits" if last else None, transB=1)
            if not last:
                x = self.add("Relu", [x])

    def model(self, image_size: int, *, channels: int, classes: int) -> onnx.ModelProto:
        def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

        side = -(-image_size // 32)
        graph = helper.make_graph(
            self.nodes,
            "resnet",
            [tensor("photos", 3, image_size, image_size)],
            [tensor("logits", classes), tensor("features", channels), tensor("maps", channels, side, side)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="kennel")
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model)
        return model


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Float64Array, Float64Array]:
    """Kernel and bias of one convolution that does what `bn(conv(x))` does in evaluation mode."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("this BatchNorm keeps no running statistics")
    mean, variance = bn.running_mean.double().cpu().numpy(), bn.running_var.double().cpu().numpy()
    scale = bn.weight.detach().double().cpu().numpy() / np.sqrt(variance + bn.eps)
    kernel: Float64Array = conv.weight.detach().double().cpu().numpy() * scale[:, None, None, None]
    return kernel, bn.bias.detach().double().cpu().numpy() - mean * scale


def _linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def _features(head: nn.Module) -> int:
    return _linears(head)[0].in_features


def _classes(head: nn.Module) -> int:
    return _linears(head)[-1].out_features
