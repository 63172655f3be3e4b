"""The epochs of a training, and the best weights among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from train.predictions import Predictions

State = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """The figures of one pass; `waiting` is the share of its time spent waiting for photos.

    Of a head alone the first pass includes the reading of the photos. Where none were read, rate and share are 0.
    """

    number: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float
    seconds: float
    waiting: float = 0.0

    def better_than(self, other: Epoch | None) -> bool:
        if other is None:
            return True
        mine, theirs = self.validation_accuracy, other.validation_accuracy
        return mine > theirs or (mine == theirs and self.validation_loss < other.validation_loss)


@dataclass
class Outcome:
    """What a phase of training leaves: the weights to keep, on the CPU, and what is known of them."""

    state: State = field(default_factory=dict)
    found: Predictions | None = None  # Validation's answers with these weights, where they are at hand.
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    steps: int = 0

    def record(self, epoch: Epoch, weights: Callable[[], State], found: Predictions) -> None:
        """Add an epoch, and keep its weights and answers if they are the best so far."""
        self.epochs.append(epoch)
        if epoch.better_than(self.best):
            self.best, self.state, self.found = epoch, weights(), found

    @property
    def epochs_since_best(self) -> int:
        return self.epochs[-1].number - self.best.number if self.best and self.epochs else 0
