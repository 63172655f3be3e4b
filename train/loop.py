"""The training loop: epochs of steps, a validation after each, and the best weights kept."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from container import contract
from container.contract import Metric
from container.errors import TrainingError
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches
from train.model import HEAD
from train.stop import STOP

_LABEL_SMOOTHING = 0.1
_WARM_UP_SHARE = 0.05
_PRETRAINED_RATE = 0.1  # Of the learning rate, what layers with pretrained weights get.

Loader = DataLoader[tuple[Tensor, Tensor]]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Predictions:
    """A network's answers for a set of photos: logits (photos, classes) and labels (photos,)."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of photos whose highest logit is the right one."""
        return float((self.logits.argmax(1) == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the photos, whatever the batches were."""
        return float(functional.cross_entropy(torch.from_numpy(self.logits).double(), torch.from_numpy(self.labels)))


@dataclass(frozen=True)
class Epoch:
    """The figures of one pass."""

    number: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float
    seconds: float


@dataclass
class Outcome:
    """What `fit` leaves: the weights to keep, on the CPU, and what is known of them."""

    state: State = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    steps: int = 0


def fit(
    model: nn.Module,
    config: TrainConfig,
    *,
    loader: Loader,
    batches: TrainingBatches,
    validation: Loader,
    normalise: Normaliser,
) -> Outcome:
    """Train until the last epoch or until the job is asked to stop, and return the best weights so far.

    Stopped within the first epoch, these are the weights as they stand. Raises TrainingError for a loss that is not
    a number.
    """
    optimizer = build_optimizer(model, config)
    outcome = Outcome()
    for epoch in range(1, config.epochs + 1):
        batches.epoch = epoch
        started = time.perf_counter()
        means = _train_epoch(model, optimizer, loader, normalise, config=config, outcome=outcome, epoch=epoch)
        if STOP.requested():
            break
        seconds = time.perf_counter() - started
        found = predict(model, validation, normalise)
        if STOP.requested():
            break
        _record(
            outcome, model, Epoch(epoch, *means, found.loss, found.accuracy, batches.count / seconds, seconds), config
        )
    if not outcome.state:
        outcome.state = _copy(model)
    return outcome


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; BatchNorm and biases do not decay; pretrained layers learn at a tenth of the head's rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        slow = config.pretrained and not name.startswith(HEAD)
        rate = config.learning_rate * (_PRETRAINED_RATE if slow else 1)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]
    )


def rate_factor(step: int, total_steps: int) -> float:
    """Share of the peak rate at a step: a straight warm-up, then half a cosine down to nothing."""
    warm_up = max(1, round(total_steps * _WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    normalise: Normaliser,
    *,
    config: TrainConfig,
    outcome: Outcome,
    epoch: int,
) -> tuple[float, float]:
    """Return the mean loss and accuracy over the epoch's photos."""
    model.train()
    total_steps = config.epochs * len(loader)
    sums = torch.zeros(3, dtype=torch.float64)
    for photos, labels in progress(loader, f"epoch {epoch}/{config.epochs}"):
        factor = rate_factor(outcome.steps, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        sums += _step(model, optimizer, normalise(photos), labels, where=f"epoch {epoch}, step {outcome.steps + 1}")
        outcome.steps += 1
        STOP.hold()
        if STOP.requested():
            break
    count, loss, correct = sums.tolist()
    return loss / count, correct / count


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, photos: Tensor, labels: Tensor, *, where: str) -> Tensor:
    """One optimiser step; return the batch's size, summed loss and number of right answers."""
    labels = labels.to(photos.device, non_blocking=True)
    logits = model(photos)
    loss = functional.cross_entropy(logits, labels, label_smoothing=_LABEL_SMOOTHING)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"the loss is {value} in {where}; lower learning_rate, or look at the photos for odd ones")
    correct = int((logits.detach().argmax(1) == labels).sum())
    return torch.tensor([len(labels), value * len(labels), correct], dtype=torch.float64)


def predict(model: nn.Module, loader: Loader, normalise: Normaliser) -> Predictions:
    """Answer for every photo of the loader once, in its order; leaves early where the job is asked to stop."""
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode():
        for photos, truth in loader:
            logits.append(model(normalise(photos)).float().cpu())
            labels.append(truth)
            if STOP.requested():
                break
    return Predictions(torch.cat(logits).numpy(), torch.cat(labels).numpy())


def _record(outcome: Outcome, model: nn.Module, epoch: Epoch, config: TrainConfig) -> None:
    """Keep the weights if they are the best so far, and print the epoch."""
    outcome.epochs.append(epoch)
    best = outcome.best
    if best is None or (epoch.validation_accuracy, -epoch.validation_loss) > (
        best.validation_accuracy,
        -best.validation_loss,
    ):
        outcome.best, outcome.state = epoch, _copy(model)
    print(
        f"epoch {epoch.number}/{config.epochs}: "
        f"training loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.4f}; "
        f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}; "
        f"{epoch.images_per_second:.1f} images/s, {epoch.seconds:.1f} s",
        flush=True,
    )
    report(contract.TRAIN_LOSS, epoch.train_loss)
    report(contract.TRAIN_ACCURACY, epoch.train_accuracy)
    report(contract.TRAIN_IMAGES_PER_SECOND, epoch.images_per_second)
    report(contract.VALIDATION_LOSS, epoch.validation_loss)
    report(contract.VALIDATION_ACCURACY, epoch.validation_accuracy)
    report(contract.VALIDATION_BEST_ACCURACY, (outcome.best or epoch).validation_accuracy)


def report(metric: Metric, value: float) -> None:
    """Print a figure alone on a line, where SageMaker's regexes look for it."""
    print(metric.line(value), flush=True)


def progress(loader: Loader, title: str) -> Iterable[tuple[Tensor, Tensor]]:
    """A bar for a person at a terminal; logs get none, since a log keeps every one of its redraws."""
    bar: Iterable[tuple[Tensor, Tensor]] = tqdm(
        loader, desc=title, unit="batch", leave=False, disable=not sys.stderr.isatty()
    )
    return bar


def _copy(model: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
