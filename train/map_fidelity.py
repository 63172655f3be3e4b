"""How well int8's class-activation maps agree with float32's: served maps are of the network that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from container.heatmap import activation_map
from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.channels import Photo
from train.engine import session
from train.sets import spread

MOST_PHOTOS: Final = 64


def map_correlation(
    float32: bytes, int8: bytes, head: Float32Array, photos: Sequence[Photo], spec: Preprocessing
) -> float | None:
    """Pearson's correlation of both maps of the class that float32 answers, its mean over up to MOST_PHOTOS photos.

    `head` is (classes, channels), the one linear layer. None where no map varies: of a single place, for example.
    """
    engines: list[Any] = [session(network) for network in (float32, int8)]
    found = []
    for photo in spread(photos, MOST_PHOTOS):
        array = preprocess(photo.path.read_bytes(), spec)[None]
        (logits, exact), (_, rounded) = (engine.run(["logits", "maps"], {"photos": array}) for engine in engines)
        row = head[logits[0].argmax()]
        wanted, served = (activation_map(tensor[0], row).ravel() for tensor in (exact, rounded))
        if np.ptp(wanted) > 0 and np.ptp(served) > 0:
            found.append(np.corrcoef(wanted, served)[0, 1])
    return float(np.mean(found)) if found else None
