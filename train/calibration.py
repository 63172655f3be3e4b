"""Probabilities that mean what they say: a temperature, the calibration error, and a threshold for `confident`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from container.preprocessing import Float32Array
from container.probabilities import softmax
from train.predictions import Predictions

BINS: Final = 15
# A temperature beyond these says that the logits, not their scale, are at fault.
_RANGE: Final = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation."""

    temperature: float
    ece_before: float
    ece_after: float
    threshold: float


@dataclass(frozen=True)
class Bin:
    """Answers whose probability lies within one interval: how many, their mean probability, how many were right."""

    count: int
    confidence: float
    accuracy: float


def calibrate(found: Predictions, *, coverage: float) -> Calibration:
    """Fit all three on the logits of the engine that is shipped."""
    temperature = fit_temperature(found)
    before, after = probabilities(found, 1.0), probabilities(found, temperature)
    return Calibration(
        temperature=temperature,
        ece_before=expected_error(bins(before, found.labels)),
        ece_after=expected_error(bins(after, found.labels)),
        threshold=threshold(after, coverage),
    )


def fit_temperature(found: Predictions) -> float:
    """The divisor of the logits that makes the labels most likely (Guo et al. 2017, arXiv:1706.04599).

    Where all n photos are right, that would be as small as may be, and every answer certain. So a label is not held for
    certain, but for as likely as n right answers make the next one: (n + 1) / (n + 2), what is left going to the other
    classes (Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2; with n of all photos rather
    than of a class, since one temperature is fitted on all).
    """
    logits, labels = torch.from_numpy(found.logits).double(), torch.from_numpy(found.labels)
    count, classes = logits.shape
    smoothing = classes / (classes - 1) / (count + 2)  # torch lets the right class have its part of what is spread.
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], lr=0.5, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits / log_t.exp(), labels, label_smoothing=smoothing)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp().clamp(*_RANGE))


def probabilities(found: Predictions, temperature: float) -> Float32Array:
    """As they are served: (photos, classes)."""
    # A photo at a time, as in serving: of many at once, NumPy may round otherwise.
    return np.stack([softmax(logits, temperature) for logits in found.logits])


def bins(probability: Float32Array, labels: npt.NDArray[np.int64], count: int = BINS) -> list[Bin]:
    """Answers by the probability of the class that they name, in intervals of equal width; empty ones left out."""
    confidence, right = probability.max(1), probability.argmax(1) == labels
    place = np.minimum((confidence * count).astype(int), count - 1)
    members = [place == index for index in range(count)]
    return [Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in members if m.any()]


def expected_error(found: list[Bin]) -> float:
    """Expected calibration error: mean distance of confidence from accuracy, weighted by the bins' counts."""
    total = sum(entry.count for entry in found)
    return sum(entry.count * abs(entry.confidence - entry.accuracy) for entry in found) / total


def threshold(probability: Float32Array, coverage: float) -> float:
    """The highest probability at or above which at least that share of the answers lies."""
    descending = np.sort(probability.max(1))[::-1]
    kept = max(1, int(np.ceil(coverage * len(descending))))
    return float(descending[kept - 1]) if coverage > 0 else 1.0
