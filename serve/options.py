"""What a caller asks for beside the default, in SageMaker's custom attributes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from container.errors import RequestError
from serve.api import ATTRIBUTES_HEADER

_OPTION: Final = re.compile(r"\s*([A-Za-z_-]+)\s*=\s*(.*?)\s*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """`top_k` of None is the manifest's; `log_label` writes the answer's label into the log, which is else left out."""

    top_k: int | None = None
    explain: bool = False
    embed: bool = False
    log_label: bool = False


def read_options(attributes: str) -> Options:
    """Parse `top_k=3,embed=true` out of the custom attributes; other attributes are the caller's own.

    Raises RequestError for a value out of range, or a name that is one of ours but for one slip (see _slips).
    """
    found = (_OPTION.fullmatch(part) for part in re.split("[,;]", attributes))
    values = {match[1]: match[2] for match in found if match}
    for name in values:
        near = next((known for known in _PARSERS if _SLIPS[known].fullmatch(name.lower())), None)
        if near and name != near:
            raise RequestError(f"{ATTRIBUTES_HEADER} holds {name!r}, which is unknown; did you mean {near!r}?")
    return Options(**{name: parse(name, values[name]) for name, parse in _PARSERS.items() if name in values})


def _slips(known: str) -> str:
    """A pattern of `known` with at most one character missing, wrong, too many or swapped, after the first."""
    cuts = ((known[:at], known[at:]) for at in range(1, len(known) + 1))
    return "|".join(f"{head}.?{tail[1:]}|{head}.{tail}|{head}{tail[1:2]}{tail[:1]}{tail[2:]}" for head, tail in cuts)


def _top_k(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise RequestError(f"{name} is {text!r}; it must be a whole number of 1 or more")
    return int(text)


def _explain(name: str, text: str) -> bool:
    if text.lower() != "cam":
        raise RequestError(f"{name} is {text!r}; it can only be 'cam', a class-activation map")
    return True


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise RequestError(f"{name} is {text!r}; it must be true or false")
    return text.lower() == "true"


_PARSERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "top_k": _top_k,
    "explain": _explain,
    "embed": _flag,
    "log_label": _flag,
}
_SLIPS: Final = {name: re.compile(_slips(name)) for name in _PARSERS}
