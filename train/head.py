"""The head alone, fitted on what a frozen backbone answered for every photo.

Hosts with processors of different kinds may round differently: all go by rank 0's figures, answers and head.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import ResNet

from train.config import TrainConfig
from train.distributed import World
from train.features import Features, Reading
from train.model import HEAD
from train.outcome import Epoch, Outcome
from train.predictions import Predictions
from train.progress import print_epoch
from train.recipe import build_optimizer, clip_gradients, not_a_number, rate_factor, set_rates
from train.stop import STOP

# Before all layers learn, the head has had at least this many steps: passes over kept features cost next to nothing.
_GRADUAL_STEPS = 300


def fit_head(
    model: ResNet, training: Features, validation: Features, config: TrainConfig, *, weights: Tensor, world: World
) -> Outcome:
    """Train the head for the configured epochs, validated after each; `model` gets the best."""
    head = nn.Linear(model.fc.in_features, model.fc.out_features)
    head.load_state_dict(model.fc.state_dict())
    outcome = Outcome()
    fit = _HeadFit(head, training, config, weights=weights, epochs=config.epochs)
    for number in range(1, config.epochs + 1):
        started = time.perf_counter()
        loss, accuracy = fit.epoch(number)
        STOP.hold()
        seconds = time.perf_counter() - started
        found = answers(head, validation)
        reading = training.reading if number == 1 else Reading()
        epoch = world.from_first(_epoch(number, loss, accuracy, found, reading, seconds))
        outcome.record(epoch, lambda: _whole(model, head), found)
        if world.leads:
            print_epoch(epoch, outcome, config=config)
        bored = bool(config.patience) and outcome.epochs_since_best >= config.patience
        if any(world.any(STOP.requested(), bored)):
            break
    outcome.steps = fit.steps
    head_state, outcome.found = world.from_first((_of_head(outcome.state), outcome.found))
    outcome.state |= head_state
    return outcome


def warm_up_head(
    model: ResNet, training: Features, validation: Features, config: TrainConfig, *, weights: Tensor, world: World
) -> tuple[Epoch, dict[str, Tensor], Predictions]:
    """Fit the head before all layers learn; its figures count as epoch 0."""
    started = time.perf_counter()
    head = nn.Linear(model.fc.in_features, model.fc.out_features)
    head.load_state_dict(model.fc.state_dict())
    epochs = max(3, math.ceil(_GRADUAL_STEPS * config.batch_size / len(training.labels)))
    fit = _HeadFit(head, training, config, weights=weights, epochs=epochs)
    loss, accuracy = [fit.epoch(number) for number in range(1, epochs + 1)][-1]
    found = answers(head, validation)
    seconds = time.perf_counter() - started
    world.say(f"head alone: validation loss {found.loss:.4f}, accuracy {found.accuracy:.4f}; {seconds:.1f} s")
    state = _whole(model, head)
    mine = _epoch(0, loss, accuracy, found, training.reading, seconds), _of_head(state), found
    epoch, head_state, found = world.from_first(mine)
    return epoch, state | head_state, found


class _HeadFit:
    """Steps of the head alone. Every process takes all of them: they are too small to share."""

    def __init__(
        self, head: nn.Linear, training: Features, config: TrainConfig, *, weights: Tensor, epochs: int
    ) -> None:
        self.head = head
        self.training = training
        self.config = config
        self.weights = weights
        whole = nn.Module()
        whole.fc = head
        self.optimizer = build_optimizer(whole, config, global_batch=config.batch_size)
        self.steps = 0
        self.total = epochs * -(-len(training.labels) // config.batch_size)

    def epoch(self, number: int) -> tuple[float, float]:
        """One pass over the features; return mean loss and accuracy."""
        count = len(self.training.labels)
        order = torch.from_numpy(np.random.default_rng((self.config.seed, number, count)).permutation(count))
        sums = torch.zeros(2)
        for batch in torch.split(order, self.config.batch_size):
            labels = self.training.labels[batch]
            logits = self.head(self.training.values[batch])
            losses = functional.cross_entropy(
                logits, labels, weight=self.weights, label_smoothing=self.config.label_smoothing, reduction="none"
            )
            set_rates(self.optimizer, rate_factor(self.steps, self.total))
            self.optimizer.zero_grad(set_to_none=True)
            losses.mean().backward()  # type: ignore[no-untyped-call]
            clip_gradients(self.head)
            self.optimizer.step()
            self.steps += 1
            sums += torch.stack([losses.detach().sum(), (logits.detach().argmax(1) == labels).sum()])
        loss, accuracy = (float(value) / count for value in sums)
        if not math.isfinite(loss):
            raise not_a_number(f"epoch {number} of the head")
        return loss, accuracy


@torch.inference_mode()
def answers(head: nn.Linear, features: Features) -> Predictions:
    return Predictions(head(features.values).numpy(), features.labels.numpy())


def _epoch(number: int, loss: float, accuracy: float, found: Predictions, reading: Reading, seconds: float) -> Epoch:
    """The figures of a pass over the features, and of `reading` the photos where the pass is the first."""
    seconds += reading.seconds
    rate, waiting = reading.photos / seconds, reading.waited / seconds
    return Epoch(number, loss, accuracy, found.loss, found.accuracy, rate, seconds, waiting)


def _of_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(HEAD)}


def _whole(model: ResNet, head: nn.Linear) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    state |= {f"fc.{name}": value.detach().clone() for name, value in head.state_dict().items()}
    return state
