"""The environment variables, read once when the function's environment starts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from endpoint import CONNECT_TIMEOUT_S
from errors import ConfigError
from photos import can_scale

# Real-time endpoints take 25 MB (serverless ones 4 MB: set MAX_IMAGE_BYTES).
_DEFAULT_MAX_IMAGE_BYTES: Final = 25_000_000
# SageMaker gives a container 60 s; a socket should wait 70 s for it (SageMaker Runtime, InvokeEndpoint).
_DEFAULT_FUNCTION_TIMEOUT_S: Final = 75
# For what takes no time worth a setting: to read an event, and to write an answer.
_MARGIN_S: Final = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Each field is the environment variable of its name in capitals."""

    endpoint_name: str
    allowed_url_hosts: frozenset[str] = frozenset()
    allowed_buckets: frozenset[str] = frozenset()
    max_image_bytes: int = _DEFAULT_MAX_IMAGE_BYTES
    top_k: int | None = None
    legacy_response: bool = False
    result_prefix: str = "results/"
    cors_origins: frozenset[str] = frozenset()
    function_timeout_s: int = _DEFAULT_FUNCTION_TIMEOUT_S

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Raises ConfigError, which names every problem."""
        problems = _misspelt(env)
        values: dict[str, Any] = {}
        for name, parse in _PARSERS.items():
            if text := env.get(name.upper(), "").strip():
                try:
                    values[name] = parse(text)
                except ValueError as error:
                    problems.append(f"{name.upper()} is {text!r}; {error}")
            elif name == "endpoint_name":
                problems.append("ENDPOINT_NAME is not set; it must name the SageMaker endpoint to be asked")
        if problems:
            raise ConfigError("; ".join(problems))
        return cls(**values)

    @property
    def fetch_timeout_s(self) -> float:
        """How long a photo may take from S3 or a URL, and a result to S3."""
        return min(10.0, self.function_timeout_s / 4)

    @property
    def read_timeout_s(self) -> float:
        """How long the endpoint may take, such that an answer always fits into the function's own time-out."""
        return self.function_timeout_s - CONNECT_TIMEOUT_S - self.latest_call_s

    @property
    def latest_call_s(self) -> float:
        """Until when the endpoint may be asked, in seconds from the start: photos are fetched and scaled before."""
        takes_time = self.allowed_buckets or self.allowed_url_hosts or can_scale()
        return _MARGIN_S + (self.fetch_timeout_s if takes_time else 0)

    @property
    def latest_result_s(self) -> float:
        """Until when a result may begin to be written to S3, in seconds from the start."""
        return self.function_timeout_s - self.fetch_timeout_s


def _misspelt(env: Mapping[str, str]) -> list[str]:
    ours = [name.upper() for name in _PARSERS]
    strangers = [name for name in env if name not in ours and not name.startswith(("AWS_", "LAMBDA_", "_"))]
    near = {name: difflib.get_close_matches(name.upper(), ours, n=1, cutoff=0.85) for name in strangers}
    return [f"{name} is unknown; did you mean {found[0]}?" for name, found in near.items() if found]


def _endpoint_name(text: str) -> str:
    return _matching(text, "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", "it must be an endpoint's name, not its ARN or URL")


def _hosts(text: str) -> frozenset[str]:
    # At least one dot after the star: `*`, `*.com` and localhost are no hosts to be allowed.
    pattern = r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]"
    hint = "each must be a host such as images.example.com or *.example.com, without https:// and path"
    return frozenset(_matching(name.lower(), pattern, hint) for name in _list(text))


def _buckets(text: str) -> frozenset[str]:
    hint = "each must be a bucket's name, without s3:// and prefix"
    return frozenset(_matching(name, r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", hint) for name in _list(text))


def _origins(text: str) -> frozenset[str]:
    hint = "each must be an origin such as https://shop.example.com, or the list be * alone"
    if text == "*":
        return frozenset({"*"})
    return frozenset(_matching(origin, r"https?://[a-z0-9.-]+(:[0-9]+)?", hint) for origin in _list(text))


def _prefix(text: str) -> str:
    return _matching(text, r"[^/].*/", "it must be a prefix of its own that ends with a slash, such as results/")


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("it must be true or false")
    return text.lower() in ("true", "1")


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _matching(text: str, pattern: str, hint: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(hint)
    return text


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "endpoint_name": _endpoint_name,
    "allowed_url_hosts": _hosts,
    "allowed_buckets": _buckets,
    "max_image_bytes": _integer(1, 1_000_000_000),
    "top_k": _integer(1, 9999),
    "legacy_response": _boolean,
    "result_prefix": _prefix,
    "cors_origins": _origins,
    "function_timeout_s": _integer(10, 900),
}
