"""The training loop: epochs of steps, a validation after each, the best weights kept, and nothing lost on the way."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from container import contract
from container.contract import Metric
from container.errors import TrainingError
from train.checkpoint import Checkpoint, load_newest, save_checkpoint
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches
from train.distributed import ALONE, World
from train.recipe import (
    MovingAverage,
    autocast_type,
    build_optimizer,
    clip_gradients,
    freeze_batchnorm,
    rate_factor,
    set_rates,
)
from train.stop import STOP

Loader = DataLoader[tuple[Tensor, Tensor]]
State = dict[str, Tensor]

# Steps in a row whose gradients are not numbers, after which training is given up.
_MAX_BAD_STEPS: Final = 5


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
    """The figures of one pass; `waiting` is the share of its time that was spent waiting for photos."""

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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What `fit` works with, and does not change."""

    config: TrainConfig
    loader: Loader
    batches: TrainingBatches
    validate: Callable[[nn.Module], Predictions]
    normalise: Normaliser
    class_weights: Tensor
    world: World = ALONE
    checkpoints: Path | None = None
    fingerprint: str = ""
    batchnorm_frozen: bool = False
    profile: Path | None = None


class Trainer:
    """The state of full training between steps; `fit` runs it, checkpoints hold it."""

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.setting = setting
        self.model = model
        self.world = setting.world
        self.ema = MovingAverage(model, setting.config.ema_decay)
        self.optimizer = build_optimizer(
            model, setting.config, global_batch=setting.config.batch_size * setting.world.size
        )
        self.dtype = autocast_type(setting.config.precision, setting.world.device)
        self.scaler = torch.amp.GradScaler(setting.world.device.type, enabled=self.dtype == torch.float16)
        self.outcome = Outcome()
        self.epoch = 1
        self.step_in_epoch = 0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.bad_steps = 0
        self.last_checkpoint = time.monotonic()
        self.parallel = _parallel(model, self.world)

    # The run ------------------------------------------------------------------------------------------------

    def start_from(self, epoch: Epoch, weights: State, found: Predictions) -> None:
        """Begin with these weights, and let what comes compete with their figures."""
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(weights)
        self.outcome.record(epoch, lambda: weights, found)

    def fit(self) -> Outcome:
        """Train to the last epoch, until patience ends, or until the job is asked to stop."""
        config = self.setting.config
        while self.epoch <= config.epochs and not self._out_of_patience():
            stopped = self._run_epoch()
            if stopped:
                self.checkpoint()
                break
        if not self.outcome.state:
            self.outcome.state = self._weights()
        return self.outcome

    def _out_of_patience(self) -> bool:
        patience = self.setting.config.patience
        if not patience or self.outcome.epochs_since_best < patience:
            return False
        self.world.say(f"no better validation for {patience} epochs: training ends")
        return True

    def _run_epoch(self) -> bool:
        """Train and validate once; True if the job is to stop."""
        started = time.perf_counter()
        waiting = self._train_epoch()
        if self._stopping():
            return True
        seconds = time.perf_counter() - started
        found = self.setting.validate(self.ema.model)
        if self._stopping():
            return True
        count, loss, correct = self.world.sum(self.sums).tolist()
        rate = self.setting.batches.total / seconds
        epoch = Epoch(
            self.epoch, loss / count, correct / count, found.loss, found.accuracy, rate, seconds, waiting / seconds
        )
        self.outcome.record(epoch, self._weights, found)
        if self.world.leads:
            print_epoch(epoch, self.outcome, config=self.setting.config)
        self.epoch, self.step_in_epoch, self.sums = self.epoch + 1, 0, torch.zeros(3, dtype=torch.float64)
        self.checkpoint()
        return False

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: all leave at the same step, or a collective would hang."""
        return self.world.any(STOP.requested())[0]

    def _train_epoch(self) -> float:
        """Run the rest of the epoch's steps, or as many as the job has time for; return the seconds of waiting."""
        setting = self.setting
        setting.batches.epoch, setting.batches.first_step = self.epoch, self.step_in_epoch
        self.parallel.train()
        if setting.batchnorm_frozen:
            freeze_batchnorm(self.model)
        clock = Clock()
        title = f"epoch {self.epoch}/{setting.config.epochs}"
        profiler = steps_profiler(setting.profile if self.outcome.steps == 0 else None)
        for photos, labels in clock.waits(progress(setting.loader, title, shown=self.world.leads)):
            self._step(setting.normalise(photos), labels.to(self.world.device, non_blocking=True))
            profiler()
            STOP.hold()
            due = time.monotonic() - self.last_checkpoint > setting.config.checkpoint_seconds
            stopping, due = self.world.any(STOP.requested(), due)
            if stopping:
                break
            if due:
                self.checkpoint()
        return clock.waited

    def _step(self, photos: Tensor, labels: Tensor) -> None:
        batches, config = self.setting.batches, self.setting.config
        set_rates(self.optimizer, rate_factor(self.outcome.steps, config.epochs * batches.steps))
        with torch.autocast(photos.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.parallel(photos)
        losses = functional.cross_entropy(
            logits.float(),
            labels,
            weight=self.setting.class_weights.to(photos.device),
            label_smoothing=config.label_smoothing,
            reduction="none",
        )
        # DistributedDataParallel averages over the processes; dividing by the step's photos gives the mean over all.
        loss = losses.sum() * self.world.size / batches.size_of(self.step_in_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._update()
        real = labels >= 0
        correct = (logits.detach().argmax(1) == labels)[real].sum()
        self.sums += torch.stack([real.sum(), losses.detach().sum(), correct]).double().cpu()
        self.step_in_epoch += 1
        self.outcome.steps += 1
        self.ema.update(self.model, self.outcome.steps)

    def _update(self) -> None:
        """Move the weights, unless the gradients are not numbers: the same in all processes, which share them."""
        self.scaler.unscale_(self.optimizer)
        finite = math.isfinite(clip_gradients(self.model))
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if self.bad_steps >= _MAX_BAD_STEPS:
            raise TrainingError(
                f"the loss is not a number in epoch {self.epoch}, step {self.step_in_epoch + 1}; lower learning_rate, "
                "or look at the photos for odd ones"
            )

    # What is kept -------------------------------------------------------------------------------------------

    def _weights(self) -> State:
        return {name: value.detach().cpu().clone() for name, value in self.ema.model.state_dict().items()}

    def checkpoint(self) -> None:
        """Save everything that the next step depends on (rank 0; all processes hold the same weights)."""
        sums = self.world.sum(self.sums.clone())
        self.last_checkpoint = time.monotonic()
        folder = self.setting.checkpoints
        if folder is None or not self.world.leads:
            return
        outcome = self.outcome
        figures = {
            "fingerprint": self.setting.fingerprint,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "steps": outcome.steps,
            "sums": sums.tolist(),
            "epochs": [asdict(epoch) for epoch in outcome.epochs],
            "best": outcome.best and outcome.best.number,
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(folder, outcome.steps, Checkpoint(tensors=self._tensors(), figures=figures))

    def _tensors(self) -> State:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.outcome.state.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
        tensors["random"] = torch.get_rng_state()
        return tensors

    def resume(self) -> bool:
        """Go on from the newest checkpoint of this job, if there is one."""
        folder = self.setting.checkpoints
        found = load_newest(folder, fingerprint=self.setting.fingerprint) if folder and self.world.leads else None
        found = self.world.from_first(found)
        if found is None:
            return False
        tensors, figures = found.tensors, found.figures
        self.model.load_state_dict(_part(tensors, "model."))
        self.ema.model.load_state_dict(_part(tensors, "ema."))
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": _optimizer_state(tensors)})
        torch.set_rng_state(tensors["random"])
        self.scaler.load_state_dict(figures["scaler"])
        self.epoch, self.step_in_epoch = figures["epoch"], figures["step_in_epoch"]
        # The sums are of all processes together: one of them carries on with them.
        self.sums = torch.tensor(figures["sums"], dtype=torch.float64) * self.world.leads
        epochs = [Epoch(**entry) for entry in figures["epochs"]]
        best = next((epoch for epoch in epochs if epoch.number == figures["best"]), None)
        self.outcome = Outcome(_part(tensors, "best."), None, epochs, best, figures["steps"])
        STOP.hold()
        self.world.say(f"resumed in epoch {self.epoch} after {self.outcome.steps} step(s)")
        return True


def _part(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: State) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    return state


def _parallel(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synchronised, device_ids=[world.local_rank])
    return DistributedDataParallel(model, forward_sync_buffers=False)


class Clock:
    """How long a loop waits for its next item."""

    def __init__(self) -> None:
        self.waited = 0.0

    def waits(self, items: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - started
            yield item


def steps_profiler(folder: Path | None, steps: int = 3) -> Callable[[], None]:
    """What to call after each step: traces some early ones, if there is a folder to put the trace in."""
    if folder is None:
        return lambda: None
    profiler = torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder / "trace.json")),
    )
    profiler.start()
    left = iter(range(1 + steps))

    def after_step() -> None:
        if next(left, None) is not None:
            profiler.step()

    return after_step


@torch.inference_mode()
def predict(model: nn.Module, loader: Loader, normalise: Normaliser, *, world: World = ALONE) -> Predictions:
    """Answer for every photo of all processes' loaders once, rank after rank; leaves early where the job is to stop."""
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for photos, truth in loader:
        logits.append(model(normalise(photos)).float().cpu())
        labels.append(truth)
        if STOP.requested():
            break
    own = (torch.cat(logits).numpy(), torch.cat(labels).numpy()) if logits else None
    parts = [part for part in world.gather(own) if part is not None]
    return Predictions(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


def print_epoch(epoch: Epoch, outcome: Outcome, *, config: TrainConfig) -> None:
    """One line for people, then one metric a line for SageMaker."""
    print(
        f"epoch {epoch.number}/{config.epochs}: "
        f"training loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.4f}; "
        f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}; "
        f"{epoch.images_per_second:.1f} images/s, {epoch.seconds:.1f} s, {epoch.waiting:.0%} of it waiting for data",
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


def progress(loader: Loader, title: str, *, shown: bool = True) -> Iterable[tuple[Tensor, Tensor]]:
    """A bar for a person at a terminal; logs get none, since a log keeps every one of its redraws."""
    hidden = not (shown and sys.stderr.isatty())
    bar: Iterable[tuple[Tensor, Tensor]] = tqdm(loader, desc=title, unit="batch", leave=False, disable=hidden)
    return bar
