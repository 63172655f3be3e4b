"""What a step is made of: optimiser, rates, class weights, moving average and precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from container.errors import TrainingError
from train.config import TrainConfig
from train.model import HEAD

_WARM_UP_SHARE: Final = 0.05
# Of the learning rate, what layers with pretrained weights get.
_PRETRAINED_RATE: Final = 0.1
# The number of photos in a step for which the learning rate is stated.
_REFERENCE_BATCH: Final = 32
_MAX_GRADIENT_NORM: Final = 1.0


def build_optimizer(model: nn.Module, config: TrainConfig, *, global_batch: int) -> torch.optim.AdamW:
    """AdamW; BatchNorm and biases do not decay; pretrained layers learn at a tenth of the head's rate.

    Rates follow the square root of the photos in a step (Malladi et al. 2022, arXiv:2205.10287, for Adam). Fused: one
    pass over a weight and its state, where torch's loop on CPUs makes a dozen.
    """
    base = config.learning_rate * math.sqrt(global_batch / _REFERENCE_BATCH)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        slow = config.pretrained and not name.startswith(HEAD)
        rate = base * (_PRETRAINED_RATE if slow else 1)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        fused=True,
    )


def rate_factor(step: int, total_steps: int) -> float:
    """Share of the peak rate at a step: a straight warm-up, then half a cosine down to nothing."""
    warm_up = max(1, round(total_steps * _WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def clip_gradients(model: nn.Module) -> float:
    """Scale the gradients down to a norm of 1 where it is larger; return what it was."""
    return float(nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM))


def not_a_number(place: str) -> TrainingError:
    return TrainingError(
        f"the loss is not a number in {place}; lower learning_rate, or look at the photos (and pretrained weights) "
        "for odd ones; in float16, try precision=float32"
    )


def class_weights(counts: Sequence[int], *, balanced: bool) -> Tensor:
    """A weight for each class, 1 / sqrt(photos of it), scaled so that the mean over all photos is 1."""
    sizes = torch.tensor(counts, dtype=torch.float64)
    raw = sizes.clamp(min=1).rsqrt() if balanced else torch.ones_like(sizes)
    return (raw * sizes.sum() / (raw * sizes).sum()).float()


class MovingAverage:
    """An exponential moving average of a network's weights, quick to follow at first; without decay, the network."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False) if decay else model

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, share)
            else:
                mine.copy_(theirs)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type in which convolutions are computed; None for float32 throughout."""
    if precision == "auto":
        precision = _best_precision(device)
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if _cpu_computes_bfloat16() else "float32"


def _cpu_computes_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        flags = cpuinfo.read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def freeze_batchnorm(model: nn.Module) -> None:
    """Let BatchNorm use the statistics that it has, and not change them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
