"""The figures of a report, as plain data: what report.json holds and the page draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from container.preprocessing import Float32Array
from train.calibration import bins, probabilities
from train.channels import Photo
from train.config import TrainConfig
from train.predictions import Predictions
from train.results import Results

_PAIRS = 8
_MISTAKES = 12


@dataclass(frozen=True)
class Answer:
    """One photo: what it is, what was said, and how sure."""

    path: Path
    truth: int
    label: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that a report shows of a run."""

    class_names: tuple[str, ...]
    config: dict[str, Any]
    metrics: dict[str, float]
    epochs: list[dict[str, Any]]
    confusion: npt.NDArray[np.int64]  # (truth, answer)
    reliability: list[dict[str, Any]]
    seconds: dict[str, float]
    answers: list[Answer]
    served: str
    best: int  # the epoch whose weights are kept; 0 is the head alone
    temperature: float
    threshold: float | None
    run: dict[str, Any]  # where and how it ran

    @property
    def mistakes(self) -> list[Answer]:
        """The surest wrong answers first."""
        wrong = [answer for answer in self.answers if answer.label != answer.truth]
        return sorted(wrong, key=lambda answer: -answer.probability)[:_MISTAKES]

    @property
    def pairs(self) -> list[tuple[int, int, list[Answer]]]:
        """Classes that are taken for others, most often first, with the photos for which it happened."""
        counts = self.confusion.copy()
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
        places = [divmod(int(place), len(counts)) for place in order if counts.flat[place]]
        return [(truth, label, self._taken_for(truth, label)) for truth, label in places]

    @property
    def coverage(self) -> float:
        """Share of the answers that are served as confident."""
        return len(self._confident()) / len(self.answers)

    @property
    def confident_accuracy(self) -> float | None:
        """Share of the confident answers that are right."""
        confident = self._confident()
        return sum(answer.label == answer.truth for answer in confident) / len(confident) if confident else None

    def _confident(self) -> list[Answer]:
        return [answer for answer in self.answers if self.threshold is None or answer.probability >= self.threshold]

    def _taken_for(self, truth: int, label: int) -> list[Answer]:
        return [answer for answer in self.answers if (answer.truth, answer.label) == (truth, label)]

    def per_class(self) -> list[dict[str, Any]]:
        """Photos, precision and recall of each class; None where there is nothing to divide by."""
        right, asked, said = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return [
            {
                "class": name,
                "photos": int(asked[index]),
                "precision": float(right[index] / said[index]) if said[index] else None,
                "recall": float(right[index] / asked[index]) if asked[index] else None,
            }
            for index, name in enumerate(self.class_names)
        ]

    def to_json(self) -> dict[str, Any]:
        def named(answer: Answer) -> dict[str, Any]:
            names = {"truth": self.class_names[answer.truth], "label": self.class_names[answer.label]}
            return {"file": answer.path.name, **names, "probability": answer.probability}

        return {
            "served": self.served,
            "best_epoch": self.best,
            "temperature": self.temperature,
            "confidence_threshold": self.threshold,
            "confident": {"share": self.coverage, "accuracy": self.confident_accuracy},
            "run": self.run,
            "metrics": _finite(self.metrics),
            "epochs": [_finite(epoch) for epoch in self.epochs],
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
            "per_class": self.per_class(),
            "reliability": self.reliability,
            "most_confused": [
                {"truth": self.class_names[truth], "label": self.class_names[label], "photos": len(photos)}
                for truth, label, photos in self.pairs
            ],
            "mistakes": [named(answer) for answer in self.mistakes],
            "seconds": self.seconds,
            "hyperparameters": self.config,
        }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no word for what is not a number, or infinite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def collect(
    results: Results,
    *,
    config: TrainConfig,
    class_names: Sequence[str],
    seconds: dict[str, float],
    run: dict[str, Any],
) -> Figures | None:
    """Put the figures of validation together; None where training was stopped before the first."""
    found, best = results.shipped, results.outcome.best
    if found is None or best is None:
        return None
    temperature = results.calibration.temperature if results.calibration else 1.0
    probability = probabilities(found, temperature)
    return Figures(
        class_names=tuple(class_names),
        config=config.to_json(),
        metrics=results.metrics(),
        epochs=[asdict(epoch) for epoch in results.outcome.epochs],
        confusion=_confusion(found, len(class_names)),
        reliability=[asdict(entry) for entry in bins(probability, found.labels)],
        seconds=seconds,
        answers=_answers(found, probability, results.photos),
        served="int8" if results.int8_ships else "float32",
        best=best.number,
        temperature=temperature,
        threshold=results.calibration.threshold if results.calibration else None,
        run=run,
    )


def _confusion(found: Predictions, classes: int) -> npt.NDArray[np.int64]:
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (found.labels, found.logits.argmax(1)), 1)
    return counts


def _answers(found: Predictions, probability: Float32Array, photos: Sequence[Photo]) -> list[Answer]:
    said = found.logits.argmax(1)
    rows = zip(photos, found.labels.tolist(), said.tolist(), probability.max(1).tolist(), strict=True)
    return [Answer(photo.path, truth, label, sure) for photo, truth, label, sure in rows]
