"""The picture of where a class was seen, which the report and the API share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from container.heatmap import activation_map, overlay

GREY = Image.new("RGB", (64, 64), (90, 90, 90))


def glow(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far each place of a heat map's picture is from the photo alone, (4, 4)."""
    difference = np.abs(np.asarray(overlay(GREY, heat.astype(np.float32)), np.int16) - 90).sum(2)
    found: npt.NDArray[np.float64] = difference.reshape(4, 16, 4, 16).mean((1, 3))
    return found


def test_an_activation_map_shows_where_the_class_was_seen() -> None:
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 2] = 3
    maps[1, 3, 3] = 5
    heat = activation_map(maps, np.array([1, -1], np.float32))
    assert (heat[1, 2], heat[3, 3], heat[0, 0]) == (3, -5, 0)
    found = glow(heat.astype(np.float64))
    assert int(found.argmax()) == 1 * 4 + 2
    assert found.max() > 10 * max(1, found[3, 0], found[3, 3])


def test_what_speaks_against_a_class_is_not_shown() -> None:
    against = np.full((4, 4), -1.0)
    against[2, 1] = -9
    assert glow(against).max() == 0
    assert glow(np.zeros((4, 4))).max() == 0


def test_places_that_add_alike_look_alike() -> None:
    found = glow(np.full((4, 4), 2.0) + 1e-3 * np.arange(16).reshape(4, 4))
    assert found.min() > 0.9 * found.max() > 0
