"""The program `import-weights`: a state dict from elsewhere -> an artifact that can be served.

    import-weights --weights model.pth --classes classes.txt [--model-dir /opt/ml/model]
                   [--image-size 224] [--top-k 5] [--normalise true]

`classes.txt` holds a class name a line, in the order of the network's outputs. The head may be one linear layer or
several with ReLU between them (`fc.0`, `fc.2` or, by name, `fc.fc1`, `fc.fc2`), as course projects have it.
`--normalise false` is for networks that were trained on plain 0 … 1 values, without ImageNet's mean and deviation.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from container.artifact import Manifest
from container.contract import SageMakerPaths
from container.errors import ConfigError, KennelError, WeightsError
from container.preprocessing import Preprocessing
from train.config import did_you_mean, read_command_line
from train.export import Networks, build_network, write_artifact
from train.folders import make_writable
from train.hyperparameters import Option, parse
from train.model import build_resnet, read_state_dict
from train.stop import STOP, Stopped

_OPTIONS: Final = ("weights", "classes", "model_dir", "image_size", "top_k", "normalise")
# Blocks in the third layer, and whether they are bottlenecks, tell the architectures apart.
_ARCHITECTURES: Final[Mapping[tuple[int, bool], str]] = {
    (2, False): "resnet18",
    (6, True): "resnet50",
    (23, True): "resnet101",
    (36, True): "resnet152",
    (6, False): "resnet34",
}


def main(arguments: Sequence[str]) -> int:
    """Return the exit code; 1 with one sentence where the weights cannot be used, 143 where it was stopped."""
    try:
        manifest = _import(read_command_line(arguments))
    except (KennelError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return STOP.exit_code if isinstance(error, Stopped) else 1
    print(f"imported {manifest.architecture} with {len(manifest.class_names)} classes, version {manifest.version}")
    return 0


def _import(given: Mapping[str, str]) -> Manifest:
    values = {name.replace("-", "_"): value for name, value in given.items()}
    for name in values:
        if name not in _OPTIONS:
            raise ConfigError(f"option {name!r} is unknown{did_you_mean(name, _OPTIONS)}")
    if "weights" not in values or "classes" not in values:
        raise ConfigError("both --weights FILE and --classes FILE are needed; the second has a class name a line")
    names = read_class_names(Path(values["classes"]))
    model, architecture = rebuild(read_state_dict(Path(values["weights"])), num_classes=len(names))
    image_size, top_k = _integer(values, "image_size", 224), _integer(values, "top_k", 5)
    spec = Preprocessing.for_image_size(image_size)
    if not _parsed(values.get("normalise", "true"), bool, "normalise", Option(help="")):
        spec = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    folder = Path(values.get("model_dir", SageMakerPaths.from_env().model))
    make_writable(folder)
    samples = torch.randn(4, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).numpy()
    network = build_network(model, image_size=image_size, samples=samples)
    head = "linear" if isinstance(model.fc, nn.Linear) else "mlp"
    draft = Manifest(architecture=architecture, class_names=tuple(names), preprocessing=spec, top_k=top_k, head=head)
    return write_artifact(folder, model, Networks(float32=network), draft)


def _integer(values: Mapping[str, str], name: str, default: int) -> int:
    return int(_parsed(values.get(name, str(default)), int, name, Option(help="", minimum=1, maximum=1024)))


def _parsed(text: str, kind: type, name: str, option: Option) -> int:
    try:
        return int(parse(text, kind, option))
    except ValueError as error:
        raise ConfigError(f"option {name!r} {error}") from error


def read_class_names(path: Path) -> list[str]:
    """A name a line; empty lines do not count. Raises ConfigError for fewer than two, or one that is there twice."""
    lines: dict[str, list[int]] = defaultdict(list)
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            lines[line.strip()].append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; it must hold a class name a line") from error
    lines.pop("", None)
    for name, numbers in lines.items():
        if len(numbers) > 1:
            raise ConfigError(
                f"{path} holds the class name {name!r} in lines {' and '.join(map(str, numbers))}; each class needs a "
                "name of its own"
            )
    names = list(lines)
    if len(names) < 2:
        raise ConfigError(f"{path} holds {len(names)} class name(s); it needs at least 2, each on a line of its own")
    return names


def rebuild(state: Mapping[str, Tensor], *, num_classes: int) -> tuple[ResNet, str]:
    """The network that the state dict is of, filled, and its architecture. Raises WeightsError."""
    blocks = {name.split(".")[1] for name in state if name.startswith("layer3.")}
    key = (len(blocks), any(name.startswith("layer1.0.conv3") for name in state))
    architecture = _ARCHITECTURES.get(key)
    if architecture is None:
        raise WeightsError(
            "the weights are of no ResNet that is known; expected torchvision's names (layer1.0.conv1 …)"
        )
    model = build_resnet(architecture, num_classes)
    model.fc = _head(state, num_classes)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {architecture}: {str(error).splitlines()[-1].strip()}") from error
    return model.eval(), architecture


def _head(state: Mapping[str, Tensor], num_classes: int) -> nn.Module:
    weights = {name: value for name, value in state.items() if name.startswith("fc.") and value.ndim == 2}
    if not weights:
        raise WeightsError("the weights have no head: expected fc.weight, or fc.0.weight and so on")
    last = list(weights.values())[-1].shape[0]
    if last != num_classes:
        raise WeightsError(f"the head answers {last} classes, but {num_classes} names are given")
    if "fc.weight" in weights:
        return nn.Linear(weights["fc.weight"].shape[1], num_classes)
    layers = {name.split(".")[1]: nn.Linear(value.shape[1], value.shape[0]) for name, value in weights.items()}
    return _numbered(layers) if all(name.isdigit() for name in layers) else _named(layers)


def _numbered(layers: Mapping[str, nn.Linear]) -> nn.Sequential:
    """Layers of an nn.Sequential: what lies between two linear ones has no weights, and is taken for ReLU."""
    last = max(map(int, layers))
    return nn.Sequential(*[layers.get(str(index), nn.ReLU()) for index in range(last + 1)])


def _named(layers: Mapping[str, nn.Linear]) -> nn.Sequential:
    """Layers in the order of the state dict, with ReLU between them. Raises WeightsError where it cannot be theirs."""
    if any(before.out_features != after.in_features for before, after in pairwise(layers.values())):
        shapes = ", ".join(f"fc.{name} {layer.in_features} to {layer.out_features}" for name, layer in layers.items())
        raise WeightsError(
            f"the head's layers ({shapes}) do not follow each other; expected linear layers in the order in which they "
            "are run, with ReLU between them"
        )
    steps: list[tuple[str, nn.Module]] = []
    for name, layer in layers.items():
        steps += [(f"relu before {name}", nn.ReLU()), (name, layer)]
    return nn.Sequential(OrderedDict(steps[1:]))


def run() -> None:
    STOP.install()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
