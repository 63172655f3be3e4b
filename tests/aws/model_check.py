"""Whether a request fits AWS's own model of it: enum, pattern, maximum and minimum, which botocore does not check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def violations(shape: Any, value: Any, *, at: str = "") -> Iterator[str]:
    """Walk a request beside the input shape of its operation; one sentence for each thing that does not fit."""
    kind = shape.type_name
    if kind == "structure":
        yield from _structure(shape, value, at)
    elif kind == "list":
        yield from _outside(shape, len(value), at)
        for index, inner in enumerate(value):
            yield from violations(shape.member, inner, at=f"{at}[{index}]")
    elif kind == "map":
        yield from _outside(shape, len(value), at)
        for key, inner in value.items():
            yield from violations(shape.key, key, at=f"{at} key {key}")
            yield from violations(shape.value, inner, at=f"{at}.{key}")
    elif kind == "string":
        yield from _string(shape, value, at)
    elif kind in ("integer", "long", "float", "double"):
        yield from _outside(shape, value, at)


def _structure(shape: Any, value: Any, at: str) -> Iterator[str]:
    yield from (f"{at}.{unknown}: no such member" for unknown in set(value) - set(shape.members))
    yield from (f"{at}.{required}: missing" for required in set(shape.required_members) - set(value))
    for key in set(value) & set(shape.members):
        yield from violations(shape.members[key], value[key], at=f"{at}.{key}")


def _string(shape: Any, value: str, at: str) -> Iterator[str]:
    yield from _outside(shape, len(value), at)
    if shape.metadata.get("enum") and value not in shape.metadata["enum"]:
        yield f"{at}: {value!r} is not in the enum"
    if (pattern := shape.metadata.get("pattern")) and not re.fullmatch(_python(pattern), value, re.DOTALL):
        yield f"{at}: {value!r} does not match {pattern}"


def _outside(shape: Any, size: float, at: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if (low is not None and size < low) or (high is not None and size > high):
        yield f"{at}: {size} is not in {low}..{high}"


def _python(pattern: str) -> str:
    """The models' classes of characters and their pairs of surrogates, which Python's `re` does not have."""
    pattern = pattern.replace(r"[\p{Print}]", r"[\x20-\x7e]").replace(r"\z", r"\Z")
    classes = {
        r"\p{L}": r"\w",
        r"\p{Z}": r"\s",
        r"\p{N}": r"\d",
        r"\p{ASCII}": r"[\x00-\x7f]",
        r"\p{Print}": r"[\x20-\x7e]",
    }
    classes[r"\ud800\udc00-\udbff\udfff"] = r"\U00010000-\U0010ffff"
    classes[r"\uD800\uDC00-\uDBFF\uDFFF"] = r"\U00010000-\U0010ffff"
    for theirs, ours in classes.items():
        pattern = pattern.replace(theirs, ours)
    return pattern
