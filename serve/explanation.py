"""Where in the photo a ResNet saw its class: the class-activation map (Zhou et al. 2016, arXiv:1512.04150).

A ResNet ends in a mean over its last maps and one linear layer, so the maps, weighted with the class's row of that
layer, are exactly the logit before its mean: the map's mean plus the class's bias is the logit. No gradient is needed.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from safetensors import safe_open

from container.errors import NotAcceptableError
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
    found: Float32Array = np.tensordot(row, maps, 1)
    return found


def _head_row(weights: Path, index: int) -> Float32Array | None:
    if not weights.is_file():
        return None
    with safe_open(weights, framework="numpy") as file:
        if _HEAD not in file.keys():  # noqa: SIM118  not a dictionary
            return None
        row: Float32Array = file.get_slice(_HEAD)[index : index + 1][0]
        return row


def draw(data: bytes, heat: Float32Array, spec: Preprocessing) -> bytes:
    """A PNG of what the network saw of the photo `data`, under `heat` in blue (least) to red (most).

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
    spread = float(heat.max() - heat.min()) or 1.0
    grey = Image.fromarray((heat - heat.min()) / spread, "F").resize(square.size, Image.Resampling.BICUBIC)
    share = np.asarray(grey, np.float32).clip(0, 1)[..., None]
    mixed = np.asarray(square, np.float32) * (1 - 0.6 * share) + 255 * _colours(share[..., 0]) * 0.6 * share
    buffer = io.BytesIO()
    Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _colours(share: Float32Array) -> Float32Array:
    """(h, w) in 0 ... 1 -> (h, w, 3) in 0 ... 1, from blue over green and yellow to red."""
    centres = np.array([1.0, 0.5, 0.0], np.float32)
    colours: Float32Array = (1.5 - np.abs(4 * (share[..., None] - centres) * 0.75)).clip(0, 1)
    return colours
