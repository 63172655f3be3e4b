"""A network's answers for a set of photos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from train.data import Normaliser
from train.distributed import ALONE, World
from train.stop import STOP

T = TypeVar("T")
# Items of each process between two questions whether another was asked to stop: seconds on a CPU.
_ROUND: Final = 16

Loader = DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Predictions:
    """A network's answers for a set of photos: logits (photos, classes) and labels (photos,)."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of photos whose highest logit is the right one; logits that are no numbers are wrong."""
        numbers = np.isfinite(self.logits).all(1)  # The highest of NaNs is the first.
        return float((numbers & (self.logits.argmax(1) == self.labels)).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the photos, whatever the batches were."""
        return float(functional.cross_entropy(torch.from_numpy(self.logits).double(), torch.from_numpy(self.labels)))


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader, normalise: Normaliser, *, world: World = ALONE) -> Predictions:
    """Answer for every photo of all processes' loaders once, rank after rank; leaves early where the job is to stop."""
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for photos, truth in until_stopped(loader, len(loader), world=world):
        logits.append(model(normalise(photos)).float().cpu())
        labels.append(truth)
    own = (torch.cat(logits).numpy(), torch.cat(labels).numpy()) if logits else None
    parts = [Predictions(*part) for part in world.gather(own) if part is not None]
    return joined(parts)


def until_stopped(items: Iterable[T], count: int, *, world: World) -> Iterator[T]:
    """This process's items, which must all be taken; fewer in every process where one of them was asked to stop.

    Between two rounds of items processes ask each other, those that have fewer or none as well.
    """
    rest = iter(items)
    for _ in range(-(-max(world.gather(count)) // _ROUND)):
        for item in islice(rest, _ROUND):
            yield item
            if STOP.requested():
                break
        if world.any(STOP.requested())[0]:
            return


def joined(parts: Sequence[Predictions]) -> Predictions:
    """One after another."""
    return Predictions(np.concatenate([part.logits for part in parts]), np.concatenate([part.labels for part in parts]))
