"""Class-activation maps over photos (Zhou et al. 2016, arXiv:1512.04150): exact for a ResNet, without gradients."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from container.preprocessing import Float32Array

# From nothing to strongest: dark blue, magenta, orange, pale yellow, as in matplotlib's inferno.
_COLOURS: Final = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)


def activation_map(maps: Float32Array, head_row: Float32Array) -> Float32Array:
    """`maps` (channels, h, w) weighted with a class's row of the head (channels,): (h, w), from 0 to 1."""
    raw = np.maximum(np.tensordot(head_row, maps, axes=1), 0)
    strongest = raw.max()
    scaled: Float32Array = raw / strongest if strongest > 0 else raw
    return scaled


def overlay(square: Image.Image, activation: Float32Array) -> Image.Image:
    """The photo as the network saw it, the activation laid over it in colour."""
    field = Image.fromarray(activation.astype(np.float32)).resize(square.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(field, np.float32), 0, 1)
    colour = _coloured(strength)
    opacity = 0.65 * strength[..., None]
    mixed = np.asarray(square.convert("RGB"), np.float32) * (1 - opacity) + colour * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def _coloured(strength: Float32Array) -> npt.NDArray[np.float32]:
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(strength, stops, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)
