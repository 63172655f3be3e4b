"""What a network says of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """`classes` best first; `confident` is None where the artifact has no threshold; the next two only if asked for.

    `heat_map` is a PNG; `width` and `height` are the photo's as it was sent.
    """

    classes: Sequence[ClassProbability]
    confident: bool | None = None
    embedding: Sequence[float] | None = None
    heat_map: bytes | None = None
    decode_s: float
    inference_s: float
    width: int
    height: int
