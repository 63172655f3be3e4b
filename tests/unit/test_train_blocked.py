"""The forward pass in oneDNN's layout: the same logits, gradients and running figures as the model's own."""

from __future__ import annotations

import copy
import platform

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.blocked import Blocked, as_trained
from train.model import build_resnet
from train.recipe import freeze_batchnorm

PHOTOS, CLASSES = 6, 5


def _step(network: nn.Module, *, frozen: bool, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a step leaves: logits, running figures, and gradients by the parameter's name."""
    network.train()
    if frozen:
        freeze_batchnorm(network)
    photos = torch.randn(PHOTOS, 3, 70, 65, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits: Tensor = network(photos.contiguous(memory_format=torch.channels_last))
    functional.cross_entropy(logits, torch.arange(PHOTOS) % CLASSES).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    left = {"logits": logits.detach(), **dict(network.named_buffers()), **gradients}
    return {name.removeprefix("model."): value for name, value in left.items()}


def _distance(found: Tensor, value: Tensor) -> Tensor:
    distance: Tensor = (found.double() - value.double()).norm() / value.double().norm().clamp(min=1e-9)
    return distance


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's layout is used on x86-64 alone")
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_a_step_is_the_models_own(architecture: str, frozen: bool) -> None:
    torch.manual_seed(0)
    model = build_resnet(architecture, CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # Away from the zeros and ones of their start.
            for figure in (module.weight, module.bias, module.running_mean, module.running_var):
                assert figure is not None
                nn.init.uniform_(figure, 0.5, 1.0)
    blocked, exact = as_trained(copy.deepcopy(model), torch.device("cpu"), None), copy.deepcopy(model).double()
    assert isinstance(blocked, Blocked)
    found, own = _step(blocked, frozen=frozen), _step(model, frozen=frozen)
    reference = _step(exact, frozen=frozen, dtype=torch.float64)
    assert found.keys() == own.keys() == reference.keys()
    assert len(found) == 1 + len(list(model.buffers())) + len(list(model.parameters()))
    for name, value in reference.items():
        wrong, allowed = (float(_distance(side[name], value)) for side in (found, own))
        # As near to float64's as the model itself is, which one ReLU that turns over may move.
        assert wrong < 4 * allowed + 1e-5, f"{name}: off by {wrong}, the model by {allowed}"
    for parameter in blocked.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def test_other_devices_and_types_train_the_model_itself() -> None:
    model = build_resnet("resnet18", 2)
    assert as_trained(model, torch.device("cuda"), None) is model
    assert as_trained(model, torch.device("cpu"), torch.bfloat16) is model
