"""ResNets, and the pretrained weights that they may start from."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import torch.hub
import torchvision.models
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from container.errors import WeightsError

# Where the image keeps weights that were baked in when it was built.
IMAGE_WEIGHTS: Final = Path("/opt/pretrained")
_SUFFIXES: Final = (".safetensors", ".pth", ".pt")
_DOWNLOAD_TIMEOUT_S: Final = 30
HEAD: Final = "fc."
# Where a checkpoint keeps the weights beside the rest: Lightning's, PyTorch's tutorial's and torchvision's reference's.
_NESTED: Final = ("state_dict", "model_state_dict", "model")


def build_resnet(architecture: str, num_classes: int) -> ResNet:
    """torchvision's ResNet with fresh weights, drawn from torch's global generator."""
    model: ResNet = torchvision.models.get_model(architecture, weights=None, num_classes=num_classes)
    return model.to(memory_format=torch.channels_last)


def branch(block: BasicBlock | Bottleneck) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions of a residual block beside its short cut, each with its BatchNorm."""
    count = 3 if isinstance(block, Bottleneck) else 2
    return [(getattr(block, f"conv{step}"), getattr(block, f"bn{step}")) for step in range(1, count + 1)]


def quiet_branches(model: ResNet) -> None:
    """Start every residual block as its short cut alone, so that a network can learn without BatchNorm's statistics.

    The last BatchNorm's scale of each block begins at zero (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    """
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            _, last = branch(module)[-1]
            nn.init.zeros_(last.weight)


def load_pretrained(model: nn.Module, architecture: str, *, channel: Path | None, image: Path = IMAGE_WEIGHTS) -> str:
    """Fill all layers but the head, and return where the weights came from.

    The channel is tried first, then the image, then torchvision's download. Raises WeightsError.
    """
    if channel is not None:
        path = _weights_file(channel, architecture)
        _fill(model, read_state_dict(path), source=str(path))
        return str(path)
    for suffix in _SUFFIXES:
        path = image / f"{architecture}{suffix}"
        if path.is_file():
            _fill(model, read_state_dict(path), source=str(path))
            return str(path)
    _fill(model, _download(architecture), source="torchvision's download")
    return "torchvision's download"


def weights_digest(model: nn.Module, *, head: bool) -> str:
    """What tells the model's weights from others: of all layers, or of all but the head."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if head or not name.startswith(HEAD):
            digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _weights_file(channel: Path, architecture: str) -> Path:
    files = sorted(path for path in channel.rglob("*") if path.suffix in _SUFFIXES and not path.name.startswith("."))
    named = [path for path in files if path.stem == architecture]
    if len(files) == 1 or len(named) == 1:
        return (named or files)[0]
    found = ", ".join(path.name for path in files[:5]) or "no such file"
    raise WeightsError(
        f"channel 'pretrained' must hold one state dict of {architecture} as .safetensors or .pth in {channel}; "
        f"found: {found}"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from safetensors or from a .pth file, without running what a pickle may hold.

    Raises WeightsError.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises UnpicklingError, RuntimeError, EOFError, KeyError and others.
        reason = f"cannot be read as a state dict ({type(error).__name__}: {str(error)[:200]})"
        if type(error).__name__ == "UnpicklingError":  # torch's message tells how to load it unsafely.
            reason = (
                "holds a whole model or other pickled objects, which are not loaded because they can run code, or no "
                "weights at all"
            )
        raise WeightsError(
            f"{path} {reason}; save a state dict with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    if isinstance(state, Mapping):
        state = next((state[name] for name in _NESTED if _holds_tensors(state.get(name))), state)
    if not _holds_tensors(state):
        raise WeightsError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), path)")
    # DistributedDataParallel puts "module." before every name.
    return {name.removeprefix("module."): value for name, value in state.items()}


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, Tensor) for part in value.values())


def _fill(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    body = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    missing = [name for name in wanted if name not in body and not name.endswith("num_batches_tracked")]
    other = [name for name in body if name not in wanted or body[name].shape != wanted[name].shape]
    if missing or other:
        wrong = f"lacks {missing[0]}" if missing else f"holds {other[0]} of shape {tuple(body[other[0]].shape)}"
        raise WeightsError(f"{source} does not fit the network: it {wrong}; is it of another architecture?")
    model.load_state_dict(body, strict=False)


def _download(architecture: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(architecture)["DEFAULT"]
    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            state: dict[str, Tensor] = weights.get_state_dict(
                model_dir=str(_download_cache()), progress=False, check_hash=True, weights_only=True
            )
    except Exception as error:  # Of the network's or the disk's errors, or those of torch.load (see above).
        raise WeightsError(
            f"pretrained weights of {architecture} could not be downloaded ({error}). "
            "Three ways to have them: a channel "
            f"'pretrained' with torchvision's state dict as .pth or .safetensors; an image built with them "
            f"(make image PRETRAINED={architecture}); or a network that reaches {_host(weights.url)}. Or train from "
            "scratch with pretrained=false"
        ) from error
    return state


def _download_cache() -> Path:
    """Below TORCH_HOME, where that is set; no home folder is written to, which in a container may be root's."""
    if "TORCH_HOME" in os.environ:
        return Path(torch.hub.get_dir(), "checkpoints")
    return Path(tempfile.gettempdir(), "torch")


def _host(url: str) -> str:
    return url.split("/")[2]


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    # torch.hub opens its URL without a time limit: where packets are dropped, a job would hang.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
