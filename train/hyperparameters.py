"""A hyperparameter's text, as SageMaker or a command line hands it over -> a checked Python value.

Standard library and container.contract only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from container.contract import FALSE_WORDS, TRUE_WORDS


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a tuning job searches; `log` for a scale on which every power of ten gets the same share."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a hyperparameter means and may be. `minimum` and `maximum` are allowed values themselves."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    tune: Range | tuple[str, ...] | None = None


def parse(value: Any, kind: type, option: Option) -> Any:
    """Raises ValueError with the end of a sentence: what was found and what was expected."""
    text = _unquoted(value)
    if kind is bool:
        return _boolean(text)
    if kind is str:
        return _choice(text, option.choices)
    return _within(_number(text, kind), option)


def _unquoted(value: Any) -> str:
    # Tuned and SDK-encoded values arrive as JSON inside JSON: '"128"', even twice.
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value).strip()
    while len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            inner = json.loads(text)
        except ValueError:
            inner = text[1:-1]
        text = str(inner).strip()
    return text


def _boolean(text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise ValueError(f"is {text!r}; expected true or false")


def _choice(text: str, choices: Sequence[str]) -> str:
    if text.lower() not in choices:
        raise ValueError(f"is {text!r}; expected one of {', '.join(choices)}")
    return text.lower()


def _number(text: str, kind: type) -> int | float:
    noun = "a whole number" if kind is int else "a number"
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"is {text!r}; expected {noun}") from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError(f"is {text!r}; expected {noun}")
    return int(number) if kind is int else number


def _within(number: int | float, option: Option) -> int | float:
    low, high = option.minimum, option.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        raise ValueError(f"is {number:g}; expected {limits(option)}")
    return number


def limits(option: Option) -> str:
    """The allowed values in words: `from 1 to 1000`, `at least 0`, `resnet18, resnet34`; empty where any will do."""
    if option.choices:
        return ", ".join(option.choices)
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else ""


def tuning_ranges(options: Mapping[str, tuple[type, Option]]) -> dict[str, list[dict[str, Any]]]:
    """The options that carry a range as CreateHyperParameterTuningJob's ParameterRanges."""
    ranges: dict[str, list[dict[str, Any]]] = {
        "ContinuousParameterRanges": [],
        "IntegerParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for name, (kind, option) in options.items():
        if isinstance(option.tune, Range):
            key = "IntegerParameterRanges" if kind is int else "ContinuousParameterRanges"
            ranges[key].append({"Name": name, **_numeric(option.tune)})
        elif option.tune:
            ranges["CategoricalParameterRanges"].append({"Name": name, "Values": list(option.tune)})
    return ranges


def _numeric(scale: Range) -> dict[str, str]:
    return {
        "MinValue": f"{scale.low:g}",
        "MaxValue": f"{scale.high:g}",
        "ScalingType": "Logarithmic" if scale.log else "Linear",
    }
