"""The hyperparameters: one schema, from which parsing, `train --help`, `train --describe` and tuning ranges come.

Standard library only, so that tools on a laptop can read it without torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from container.contract import VALIDATION_BEST_ACCURACY, SageMakerPaths, metric_definitions
from container.errors import ConfigError
from train.hyperparameters import Option, Range, limits, parse, tuning_ranges

ARCHITECTURES: Final = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

# Keys with which SageMaker's SDK asks a framework container to run the user's own script.
_SCRIPT_KEYS: Final = ("sagemaker_program", "sagemaker_submit_directory")
_TUNING_KEY: Final = "_tuning_objective_metric"


def _option(default: Any, text: str, **rules: Any) -> Any:
    return field(default=default, metadata={"option": Option(help=text, **rules)})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training job was asked to do; every value is checked."""

    architecture: str = _option("resnet50", "the network", choices=ARCHITECTURES)
    pretrained: bool = _option(
        True, "start from weights of ImageNet: from the channel 'pretrained', the image, or a download"
    )
    strategy: str = _option(
        "auto",
        "head: the pretrained layers stay as they are and are run once; full: all layers learn; gradual: the head "
        "first, then all layers from it; auto: gradual with pretrained weights, full without",
        choices=("auto", "head", "full", "gradual"),
    )
    epochs: int = _option(10, "passes over the training photos", minimum=1, maximum=10_000)
    batch_size: int = _option(
        32,
        "photos in a step of each process; on average, where hosts have unequal parts of the photos",
        minimum=2,
        maximum=65_536,
        tune=("16", "32", "64"),
    )
    learning_rate: float = _option(
        1e-3,
        "highest rate of layers that start from nothing, for 32 photos in a step over all processes (it follows the "
        "square root of their number); layers with pretrained weights learn at a tenth of it",
        minimum=1e-8,
        maximum=10,
        tune=Range(low=1e-4, high=1e-2, log=True),
    )
    weight_decay: float = _option(
        1e-2,
        "AdamW's decay, on weights of convolutions and of the head",
        minimum=0,
        maximum=1,
        tune=Range(low=1e-4, high=1e-1, log=True),
    )
    label_smoothing: float = _option(
        0.1, "share of the truth that is spread over all classes", minimum=0, maximum=0.9, tune=Range(low=0, high=0.2)
    )
    class_weights: bool = _option(True, "let photos of rare classes count more, by the square root of the rarity")
    ema_decay: float = _option(
        0.99,
        "of the moving average of the weights, which is what is validated and kept where all layers learn; 0: none",
        minimum=0,
        maximum=1,
    )
    patience: int = _option(10, "epochs without a better validation before training ends; 0: never", minimum=0)
    image_size: int = _option(224, "side in pixels of the square that the network sees", minimum=32, maximum=1024)
    flip: bool = _option(
        True, "show photos mirrored at random; false for writing, signs and other left-or-right matters"
    )
    randaugment: int = _option(
        5, "magnitude of RandAugment's two random changes of colour or shape; 0: none", minimum=0, maximum=30
    )
    precision: str = _option(
        "auto",
        "of the arithmetic in training; auto: bfloat16 or float16 on CUDA, bfloat16 on CPUs that have it in hardware",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    seed: int = _option(0, "of every random draw", minimum=0, maximum=2**32 - 1)
    workers: int = _option(
        -1, "processes that decode photos; -1: as many as the cores and /dev/shm allow", minimum=-1, maximum=256
    )
    processes_per_host: int = _option(
        -1, "training processes on each host; -1: one for each GPU, or one", minimum=-1, maximum=64
    )
    checkpoint_seconds: int = _option(
        300, "least time between checkpoints within an epoch; each epoch ends with one in any case", minimum=0
    )
    quantize: str = _option(
        "auto",
        "int8: auto ships it if it proves as good as float32 on validation, always ships it, never does not make it",
        choices=("auto", "never", "always"),
    )
    max_accuracy_drop: float = _option(
        0.5, "points of validation accuracy that int8 may lose and still be shipped", minimum=0, maximum=100
    )
    coverage: float = _option(
        0.95, "share of validation photos that the threshold for `confident` answers must keep", minimum=0, maximum=1
    )
    report: bool = _option(True, "write the report to output/data")
    profile: bool = _option(False, "write a trace of some steps by torch's profiler to output/data")
    strict_data: bool = _option(False, "end with an error where the same photo lies in two sets")
    top_k: int = _option(
        5, "classes in a served answer unless a request asks for another number", minimum=1, maximum=1000
    )

    @property
    def plan(self) -> str:
        """The strategy, `auto` resolved."""
        if self.strategy != "auto":
            return self.strategy
        return "gradual" if self.pretrained else "full"

    @classmethod
    def from_hyperparameters(
        cls, values: Mapping[str, Any], command_line: Mapping[str, str] | None = None
    ) -> TrainConfig:
        """Check every value of both; the command line's beat hyperparameters.json's.

        Raises ConfigError that names all problems at once.
        """
        problems: list[str] = []
        parsed: dict[str, Any] = {}
        chosen = {
            canonical_name(key): (key, value)
            for source in (values, command_line or {})
            for key, value in source.items()
        }
        for key, value in chosen.values():
            problems += _take(key, value, parsed)
        if parsed.get("strategy") in ("head", "gradual") and parsed.get("pretrained") is False:
            problems.append(
                f"strategy={parsed['strategy']} needs pretrained weights: without them it would freeze noise; use "
                "strategy=full, or pretrained=true"
            )
        if problems:
            raise ConfigError("; ".join(problems))
        return cls(**parsed)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def options() -> dict[str, tuple[type, Option]]:
    """Type and rules of every hyperparameter, by name."""
    kinds = get_type_hints(TrainConfig)
    return {entry.name: (kinds[entry.name], entry.metadata["option"]) for entry in fields(TrainConfig)}


def canonical_name(key: str) -> str:
    """`Batch-Size` and `batch_size` are the same hyperparameter."""
    return key.strip().lower().replace("-", "_")


def _take(key: str, value: Any, parsed: dict[str, Any]) -> list[str]:
    """Put the value into `parsed`, or return what is wrong with it."""
    name = canonical_name(key)
    if name in _SCRIPT_KEYS:
        return [
            f"hyperparameter {key!r} asks for a script of your own to be run; this image trains with its own program: "
            "start the job without source_dir and entry_point"
        ]
    if name.startswith("sagemaker_") or name == _TUNING_KEY:
        return []
    known = options()
    if name not in known:
        return [f"hyperparameter {key!r} is unknown{did_you_mean(name, known)}"]
    try:
        parsed[name] = parse(value, *known[name])
    except ValueError as error:
        return [f"hyperparameter {name!r} {error}"]
    return []


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the whole choice where nothing comes near."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def read_hyperparameters(path: Path) -> dict[str, Any]:
    """Return the file's entries, none where there is no file. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; expected an object of names and values")
    return values


def checkpoint_folder(paths: SageMakerPaths) -> Path:
    """/opt/ml/checkpoints, or the LocalPath that the job's CheckpointConfig names."""
    try:
        value = json.loads((paths.config / "checkpointconfig.json").read_text(encoding="utf-8"))
        return Path(value.get("LocalPath") or paths.checkpoints)
    except (OSError, ValueError, AttributeError, TypeError):
        return paths.checkpoints


def read_command_line(arguments: Sequence[str]) -> dict[str, str]:
    """`--epochs 3`, `--epochs=3` and, for true, a bare `--flip` -> names and texts. Raises ConfigError for others."""
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"argument {word!r} is not understood; write --name value (see train --help)")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        values[name] = value
    return values


def describe() -> dict[str, Any]:
    """All that a program which starts training jobs needs to know of this one, as JSON."""
    defaults = TrainConfig().to_json()
    return {
        "hyperparameters": [
            {
                "name": name,
                "type": kind.__name__,
                "default": defaults[name],
                "help": option.help,
                **({"choices": list(option.choices)} if option.choices else {}),
                **({"minimum": option.minimum} if option.minimum is not None else {}),
                **({"maximum": option.maximum} if option.maximum is not None else {}),
            }
            for name, (kind, option) in options().items()
        ],
        "metric_definitions": metric_definitions(),
        # The best so far belongs to the weights that are kept, so it is what a search should compare.
        "objective": {"MetricName": VALIDATION_BEST_ACCURACY.name, "Type": "Maximize"},
        "parameter_ranges": tuning_ranges(options()),
    }


def help_text() -> str:
    """What `train --help` prints."""
    defaults = TrainConfig().to_json()
    lines = [
        "usage: train [--name value …]     train on the channels in /opt/ml/input/data",
        "       train --describe           hyperparameters, metrics and tuning ranges as JSON",
        "",
        "Values come from /opt/ml/input/config/hyperparameters.json; the command line beats it.",
        "",
    ]
    for name, (_, option) in options().items():
        allowed = limits(option)
        lines.append(f"  --{name.replace('_', '-')} {json.dumps(defaults[name]).strip(chr(34))}")
        lines.append(f"        {option.help}{f' ({allowed})' if allowed else ''}")
    return "\n".join(lines)
