"""Logits -> probabilities, as they are served: a threshold that training fits must mean the same to the last bit."""

from __future__ import annotations

import numpy as np

from container.preprocessing import Float32Array


def softmax(logits: Float32Array, temperature: float) -> Float32Array:
    """Of logits / temperature: (classes,) -> (classes,), its powers and their sum in double precision."""
    scaled = logits / np.float32(temperature)
    powers = np.exp(scaled.astype(np.float64) - scaled.max())
    probabilities: Float32Array = (powers / powers.sum()).astype(np.float32)
    return probabilities
