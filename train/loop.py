"""The training loop: epochs of steps, a validation after each, the best weights kept, and nothing lost on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from train.blocked import as_trained
from train.checkpoint import Checkpoint, load_newest, save_checkpoint
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches
from train.distributed import ALONE, World
from train.outcome import Epoch, Outcome, State
from train.predictions import Loader, Predictions
from train.progress import Clock, print_epoch, progress, steps_profiler
from train.recipe import (
    MovingAverage,
    autocast_type,
    build_optimizer,
    clip_gradients,
    freeze_batchnorm,
    not_a_number,
    rate_factor,
    set_rates,
)
from train.stop import STOP

# Steps in a row whose gradients are not numbers, after which training is given up. float16 may skip some at its start.
_MAX_BAD_STEPS: Final = 20


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
        self.dtype = autocast_type(setting.config.precision, setting.world.device)
        self.parallel = _parallel(as_trained(model, self.world.device, self.dtype), self.world)
        self.ema = MovingAverage(model, setting.config.ema_decay)
        self.optimizer = build_optimizer(
            model, setting.config, global_batch=setting.config.batch_size * setting.world.size
        )
        self.scaler = torch.amp.GradScaler(setting.world.device.type, enabled=self.dtype == torch.float16)
        self.outcome = Outcome()
        self.epoch = 1
        self.step_in_epoch = 0
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.bad_steps = 0
        self.last_checkpoint = time.monotonic()
        # BatchNorm's, which a forward pass writes: one that is no number would stay in them.
        self.running_figures = [] if setting.batchnorm_frozen else list(model.buffers())
        self.begun: Iterator[tuple[Tensor, Tensor]] | None = None

    # The run ------------------------------------------------------------------------------------------------

    def start_from(self, epoch: Epoch, weights: State, found: Predictions) -> None:
        """Begin with these weights, and let what comes compete with their figures."""
        self.model.load_state_dict(weights)
        self.ema.model.load_state_dict(weights)
        self.outcome.record(epoch, lambda: weights, found)
        STOP.hold()
        self.checkpoint()

    def fit(self) -> Outcome:
        """Train to the last epoch, until patience ends, or until the job is asked to stop.

        Raises TrainingError where the loss, or what validation answers, is not a number.
        """
        config = self.setting.config
        while self.epoch <= config.epochs and not self._out_of_patience():
            stopped = self._run_epoch()
            if stopped:
                self.checkpoint()
                break
        else:
            if not any(epoch.number for epoch in self.outcome.epochs):  # 0 is the head alone.
                raise not_a_number(f"any of the {self.outcome.steps} step(s)")
        if not self.outcome.state:
            self.outcome.state = self._weights()
        return self.outcome

    def _out_of_patience(self) -> bool:
        patience = self.setting.config.patience
        over = bool(patience) and self.outcome.epochs_since_best >= patience
        if not self.world.any(over)[0]:
            return False
        self.world.say(f"no better validation for {patience} epochs: training ends")
        return True

    def _run_epoch(self) -> bool:
        """Train and validate once; True if the job is to stop."""
        batches = self.setting.batches
        photos = sum(batches.size_of(step) for step in range(self.step_in_epoch, batches.steps))  # of a part, resumed
        started = time.perf_counter()
        waiting = self._train_epoch()
        if self._stopping():
            return True
        seconds = time.perf_counter() - started
        if self.epoch < self.setting.config.epochs:
            self.begun = self._begin(self.epoch + 1, first_step=0)  # The loader works on while validation runs.
        found = self.setting.validate(self.ema.model)
        if self._stopping():
            return True
        self._record(found, photos / seconds, seconds, waiting / seconds)
        self.epoch, self.step_in_epoch, self.sums = self.epoch + 1, 0, torch.zeros(3, dtype=torch.float64)
        self.checkpoint()
        return False

    def _record(self, found: Predictions, rate: float, seconds: float, waiting: float) -> None:
        """Count the epoch, unless none of its steps moved the weights: float16 may skip all of its first."""
        if not np.isfinite(found.logits).all():  # Computed in float32: no scale of gradients mends that.
            raise not_a_number(f"the validation of epoch {self.epoch}")
        count, *sums = self.world.sum(self.sums)
        if not count:
            self.world.say(
                f"epoch {self.epoch} does not count: no step's gradients were numbers, and nothing was learned"
            )
            return
        loss, accuracy = (float(figure / count) for figure in sums)
        epoch = Epoch(self.epoch, loss, accuracy, found.loss, found.accuracy, rate, seconds, waiting)
        self.outcome.record(epoch, self._weights, found)
        if self.world.leads:
            print_epoch(epoch, self.outcome, config=self.setting.config)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: all leave at the same step, or a collective would hang."""
        return self.world.any(STOP.requested())[0]

    def _train_epoch(self) -> float:
        """Run the rest of the epoch's steps, or as many as the job has time for; return the seconds of waiting."""
        setting = self.setting
        items = self.begun or self._begin(self.epoch, first_step=self.step_in_epoch)
        self.begun = None
        self.parallel.train()
        if setting.batchnorm_frozen:
            freeze_batchnorm(self.model)
        clock = Clock()
        title = f"epoch {self.epoch}/{setting.config.epochs}"
        with steps_profiler(setting.profile if self.outcome.steps == 0 else None) as profiled:
            steps = len(setting.batches)
            for photos, labels in clock.waits(progress(items, title, total=steps, shown=self.world.leads)):
                self._step(setting.normalise(photos), labels.to(self.world.device, non_blocking=True))
                profiled()
                STOP.hold()
                due = time.monotonic() - self.last_checkpoint > setting.config.checkpoint_seconds
                stopping, due = self.world.any(STOP.requested(), due)
                if stopping:
                    break
                if due:
                    self.checkpoint()
        return clock.waited

    def _begin(self, epoch: int, *, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.setting.batches
        batches.epoch, batches.first_step = epoch, first_step
        return iter(self.setting.loader)

    def _step(self, photos: Tensor, labels: Tensor) -> None:
        batches, config = self.setting.batches, self.setting.config
        set_rates(self.optimizer, rate_factor(self.outcome.steps, config.epochs * batches.steps))
        before = [figure.clone() for figure in self.running_figures]
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
        if self._update():
            real = labels >= 0
            correct = (logits.detach().argmax(1) == labels)[real].sum()
            self.sums += torch.stack([real.sum(), losses.detach().sum(), correct]).double().cpu()
        else:
            for figure, value in zip(self.running_figures, before, strict=True):
                figure.copy_(value)
        self.step_in_epoch += 1
        self.outcome.steps += 1
        self.ema.update(self.model, self.outcome.steps)

    def _update(self) -> bool:
        """Move the weights, unless the gradients are not numbers: the same in all processes, which share them."""
        self.scaler.unscale_(self.optimizer)
        finite = math.isfinite(clip_gradients(self.model))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.bad_steps = 0 if finite else self.bad_steps + 1
        # Short epochs have fewer steps than that; float16 may skip all of the first.
        allowed = _MAX_BAD_STEPS if self.scaler.is_enabled() else min(_MAX_BAD_STEPS, self.setting.batches.steps)
        if self.bad_steps >= allowed:
            raise not_a_number(f"epoch {self.epoch}, step {self.step_in_epoch + 1}")
        return finite

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
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "steps": outcome.steps,
            "sums": sums.tolist(),
            "epochs": [asdict(epoch) for epoch in outcome.epochs],
            "best": outcome.best and outcome.best.number,
            "scaler": self.scaler.state_dict(),
        }
        found = Checkpoint(tensors=self._tensors(), figures=figures)
        save_checkpoint(folder, outcome.steps, found, fingerprint=self.setting.fingerprint)

    def _tensors(self) -> State:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.outcome.state.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
        if self.outcome.found is not None:
            tensors["found.logits"] = torch.from_numpy(self.outcome.found.logits)
            tensors["found.labels"] = torch.from_numpy(self.outcome.found.labels)
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
        _lay_out_as_weights(self.optimizer)
        torch.set_rng_state(tensors["random"])
        if figures["scaler"]:  # None in float32 and bfloat16, in which a job may have begun on another machine.
            self.scaler.load_state_dict(figures["scaler"])
        self.epoch, self.step_in_epoch = figures["epoch"], figures["step_in_epoch"]
        # The sums are of all processes together: one of them carries on with them.
        self.sums = torch.tensor(figures["sums"], dtype=torch.float64) * self.world.leads
        epochs = [Epoch(**entry) for entry in figures["epochs"]]
        best = next((epoch for epoch in epochs if epoch.number == figures["best"]), None)
        self.outcome = Outcome(_part(tensors, "best."), _found(tensors), epochs, best, figures["steps"])
        STOP.hold()
        self.world.say(f"resumed in epoch {self.epoch} after {self.outcome.steps} step(s)")
        return True


def _part(tensors: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _found(tensors: State) -> Predictions | None:
    found = _part(tensors, "found.")
    return Predictions(found["logits"].numpy(), found["labels"].numpy()) if found else None


def _optimizer_state(tensors: State) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    return state


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """A file's tensors are contiguous; the fused optimiser reads all of a weight's in the order of memory."""
    for weight, entry in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            entry[key] = torch.empty_like(weight).copy_(entry[key])


def _parallel(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synchronised, device_ids=[world.local_rank], gradient_as_bucket_view=True)
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
