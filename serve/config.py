"""What the environment asks of `serve`, read once into a frozen dataclass."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from container.contract import (
    DEFAULT_BATCH_DEADLINE_S,
    DEFAULT_DEADLINE_S,
    DEFAULT_MAX_PAYLOAD_MB,
    DEFAULT_PORT,
    SageMakerPaths,
)
from container.errors import ConfigError
from serve.api import ANSWER_TYPES

T = TypeVar("T")
D = TypeVar("D")

# Serving's own names begin with this; an unknown one is a mistake in spelling, not something to pass over.
_OWN_PREFIX: Final = "KENNEL_SERVE_"
_OWN_NAMES: Final = ("KENNEL_SERVE_THREADS",)
# SageMaker's own longest: an asynchronous invocation of an hour, with a body of 1 GB.
_MAX_DEADLINE_S: Final = 3600
_MAX_PAYLOAD_MIB: Final = 1024
# Batch transform sends 0 for "no limit of mine"; this is its own.
_BATCH_PAYLOAD_MIB: Final = 100


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`workers` and `threads` of None are chosen from the machine (serve.shape)."""

    paths: SageMakerPaths
    port: int = DEFAULT_PORT
    safe_ports: range | None = None
    max_payload_mib: int = DEFAULT_MAX_PAYLOAD_MB
    deadline_s: float = DEFAULT_DEADLINE_S
    startup_timeout_s: float = 240
    multi_model: bool = False
    default_accept: str = ""
    workers: int | None = None
    threads: int | None = None

    @property
    def max_payload_bytes(self) -> int:
        return self.max_payload_mib * 1024 * 1024

    @property
    def queue_s(self) -> float:
        """The part of the deadline that a request may wait for a worker: 10 of 55 seconds."""
        return self.deadline_s * 10 / 55

    @property
    def work_s(self) -> float:
        """The part of the deadline that a worker may take."""
        return self.deadline_s - self.queue_s

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ServeConfig:
        """Raises one ConfigError that names every problem."""
        reader = _Reader(env)
        batch = reader.read("SAGEMAKER_BATCH", _boolean, False)
        config = cls(
            paths=SageMakerPaths.from_env(env),
            port=reader.read("SAGEMAKER_BIND_TO_PORT", _integer(1, 65535), DEFAULT_PORT),
            safe_ports=reader.read("SAGEMAKER_SAFE_PORT_RANGE", _port_range, None),
            max_payload_mib=_payload(reader),
            deadline_s=_deadline(reader, float(DEFAULT_BATCH_DEADLINE_S if batch else DEFAULT_DEADLINE_S)),
            startup_timeout_s=reader.read("SAGEMAKER_STARTUP_TIMEOUT", _number(1, 3600), 240.0),
            multi_model=reader.read("SAGEMAKER_MULTI_MODEL", _boolean, False),
            default_accept=reader.read("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", _answer_type, ""),
            workers=reader.read("SAGEMAKER_MODEL_SERVER_WORKERS", _integer(1, 1024), None),
            threads=reader.read("KENNEL_SERVE_THREADS", _integer(1, 256), None),
        )
        reader.check_own_names()
        reader.raise_problems()
        return config


def _payload(reader: _Reader) -> int:
    value = reader.read("SAGEMAKER_MAX_PAYLOAD_IN_MB", _integer(0, _MAX_PAYLOAD_MIB), DEFAULT_MAX_PAYLOAD_MB)
    return value or _BATCH_PAYLOAD_MIB


def _deadline(reader: _Reader, default: float) -> float:
    # AWS's toolkits read the first in seconds and the second in minutes; the finer one wins there as well.
    minutes = reader.read("SAGEMAKER_MODEL_SERVER_TIMEOUT", _number(1 / 60, _MAX_DEADLINE_S / 60), None)
    seconds = reader.read("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", _number(1, _MAX_DEADLINE_S), None)
    if seconds is None and minutes is not None:
        return minutes * 60
    return seconds or default


class _Reader:
    """Reads variables one by one and keeps the problems for one error."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._problems: list[str] = []

    def read(self, name: str, parse: Callable[[str], T], default: D) -> T | D:
        text = self._env.get(name, "").strip()
        if text:
            try:
                return parse(text)
            except ValueError as error:
                self._problems.append(f"{name} is {text!r}; it must be {error}")
        return default

    def check_own_names(self) -> None:
        for name in self._env:
            if name.startswith(_OWN_PREFIX) and name not in _OWN_NAMES:
                near = difflib.get_close_matches(name, _OWN_NAMES, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(_OWN_NAMES)}"
                self._problems.append(f"{name} is unknown{hint}")

    def raise_problems(self) -> None:
        if self._problems:
            raise ConfigError("; ".join(self._problems))


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return value

    return parse


def _boolean(text: str) -> bool:
    # SageMaker sends "true", the SDK's local mode "True".
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1")


def _answer_type(text: str) -> str:
    if text.lower() not in ANSWER_TYPES:
        raise ValueError(f"one of {', '.join(ANSWER_TYPES)}")
    return text.lower()


def _port_range(text: str) -> range:
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535):
        raise ValueError("a range of ports such as 21000-21999")
    return range(int(first), int(last) + 1)
