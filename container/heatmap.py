"""Where a ResNet saw a class in a photo: the class-activation map (Zhou et al. 2016, arXiv:1512.04150), drawn over it.

A ResNet ends in a mean over its last maps and one linear layer, so the maps, weighted with the class's row of that
layer, are exactly the logit before its mean: the map's mean plus the class's bias is the logit. No gradient is needed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from container.preprocessing import Float32Array

# From nothing to strongest: dark blue, magenta, orange, pale yellow, as in matplotlib's inferno.
_COLOURS: Final = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)


def activation_map(maps: Float32Array, head_row: Float32Array) -> Float32Array:
    """(channels, h, w) and a class's row of the head (channels,) -> (h, w): what each place adds to its logit."""
    found: Float32Array = np.tensordot(head_row, maps, 1)
    return found


def overlay(square: Image.Image, heat: Float32Array) -> Image.Image:
    """The photo as the network saw it under `heat` (h, w), in colours from nothing to the strongest place.

    What speaks for the class is shown, from 0 upwards: scaled from the least place instead, a place that speaks
    against it could glow, and one that speaks for it be dark. Inferno's brightness grows with the heat, which a
    rainbow's does not, so that it can be read in print and by the colour-blind.
    """
    positive = np.maximum(heat, 0).astype(np.float32)
    field = Image.fromarray(positive / (positive.max() or 1)).resize(square.size, Image.Resampling.BICUBIC)
    strength = np.asarray(field, np.float32).clip(0, 1)
    opacity = 0.65 * strength[..., None]
    mixed = np.asarray(square.convert("RGB"), np.float32) * (1 - opacity) + _coloured(strength) * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _coloured(strength: Float32Array) -> Float32Array:
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(strength, stops, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)
