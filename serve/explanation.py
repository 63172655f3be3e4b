"""A heat map in answer to a request: the class's row of the head from the artifact, and a PNG."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Final

from safetensors import safe_open

from container.errors import NotAcceptableError
from container.heatmap import activation_map, overlay
from container.preprocessing import Float32Array, Preprocessing, centre_square, open_photo

_HEAD: Final = "fc.weight"
# The network's input is small to look at; the same square of the photo is shown at about this size.
_SHOWN: Final = 448


def class_activation_map(maps: Float32Array, weights: Path, index: int) -> Float32Array:
    """(channels, h, w) and the artifact's weights -> (h, w): how much each place adds to the logit of class `index`.

    Raises NotAcceptableError where the head is not one linear layer.
    """
    row = _head_row(weights, index)
    if row is None or row.shape != maps.shape[:1]:
        raise NotAcceptableError(
            "explain=cam needs a network that ends in one linear layer, whose weights lie in the artifact; this one "
            "has another head"
        )
    return activation_map(maps, row)


def _head_row(weights: Path, index: int) -> Float32Array | None:
    if not weights.is_file():
        return None
    with safe_open(weights, framework="numpy") as file:
        if _HEAD not in file.keys():  # noqa: SIM118  not a dictionary
            return None
        row: Float32Array = file.get_slice(_HEAD)[index : index + 1][0]
        return row


def draw(data: bytes, heat: Float32Array, spec: Preprocessing) -> bytes:
    """A PNG of what the network saw of the photo `data`, under `heat`.

    Raises NotAcceptableError where the map has one place: there is no more and no less to show.
    """
    if heat.size == 1:
        raise NotAcceptableError(
            f"explain=cam: this network sees its {spec.crop_size} x {spec.crop_size} pixels as one place; networks of "
            "64 x 64 and more have maps"
        )
    scale = max(1, round(_SHOWN / spec.crop_size))
    larger = replace(spec, resize_size=spec.resize_size * scale, crop_size=spec.crop_size * scale)
    square = centre_square(open_photo(data, min_side=larger.resize_size), larger)
    buffer = io.BytesIO()
    overlay(square, heat).save(buffer, "PNG")
    return buffer.getvalue()
