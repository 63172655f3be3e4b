"""The head alone: a frozen backbone is run once over every photo, and the head is fitted on what it answered."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import ResNet

from container.preprocessing import Preprocessing
from train.channels import Photo
from train.config import TrainConfig
from train.data import EvaluationPhotos, Normaliser, evaluation_loader
from train.distributed import ALONE, World
from train.graph import resnet_graph
from train.loop import Epoch, Loader, Outcome, Predictions, print_epoch
from train.recipe import build_optimizer, rate_factor, set_rates
from train.stop import STOP
from train.workers import usable_cores

# Before all layers learn, the head has had at least this many steps: passes over kept features cost next to nothing.
_GRADUAL_STEPS = 300
_FEATURE_BATCH = 16


@dataclass(frozen=True)
class Features:
    """What the backbone answers: values (photos, channels) and labels (photos,)."""

    values: Tensor
    labels: Tensor


def extract(
    model: ResNet, photos: Sequence[Photo], spec: Preprocessing, *, workers: int, world: World = ALONE
) -> Features:
    """Run the backbone once over this process's photos, and gather what all processes found.

    On CPUs ONNX Runtime does it, 1.65 times as fast as torch; on CUDA torch.
    """
    started = time.perf_counter()
    loader = evaluation_loader(EvaluationPhotos(photos, spec), batch_size=_FEATURE_BATCH, workers=workers)
    own = (_with_torch if world.device.type == "cuda" else _with_onnxruntime)(model, loader, spec, world)
    parts = [part for part in world.gather(own) if len(part[1])]
    found = Features(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    seconds = time.perf_counter() - started
    world.say(f"features of {len(found.labels)} photos: {len(found.labels) / seconds:.1f} images/s, {seconds:.1f} s")
    return found


def _with_onnxruntime(model: ResNet, loader: Loader, spec: Preprocessing, world: World) -> tuple[Tensor, Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, usable_cores() // world.local_size)
    network = resnet_graph(model, image_size=spec.crop_size).SerializeToString()
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    values, labels = [np.empty((0, model.fc.in_features), np.float32)], [np.empty(0, np.int64)]
    for batch, truth in loader:
        STOP.check()
        values.append(session.run(["features"], {"photos": batch.numpy()})[0])
        labels.append(truth.numpy())
    return torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(labels))


@torch.inference_mode()
def _with_torch(model: ResNet, loader: Loader, spec: Preprocessing, world: World) -> tuple[Tensor, Tensor]:
    head, model.fc = model.fc, nn.Identity()
    normalise = Normaliser(spec, world.device)
    values, labels = [torch.empty(0, head.in_features)], [torch.empty(0, dtype=torch.long)]
    model.eval()
    try:
        for batch, truth in loader:
            STOP.check()
            values.append(model(normalise(batch)).float().cpu())
            labels.append(truth)
    finally:
        model.fc = head
    return torch.cat(values).clone(), torch.cat(labels)


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
        rate = len(training.labels) / seconds
        epoch = Epoch(number, loss, accuracy, found.loss, found.accuracy, rate, seconds)
        outcome.record(epoch, lambda: _whole(model, head), found)
        if world.leads:
            print_epoch(epoch, outcome, config=config)
        if world.any(STOP.requested())[0] or (config.patience and outcome.epochs_since_best >= config.patience):
            break
    outcome.steps = fit.steps
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
    rate = epochs * len(training.labels) / seconds
    return Epoch(0, loss, accuracy, found.loss, found.accuracy, rate, seconds), _whole(model, head), found


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
            self.optimizer.step()
            self.steps += 1
            sums += torch.stack([losses.detach().sum(), (logits.detach().argmax(1) == labels).sum()])
        return float(sums[0]) / count, float(sums[1]) / count


@torch.inference_mode()
def answers(head: nn.Linear, features: Features) -> Predictions:
    return Predictions(head(features.values).numpy(), features.labels.numpy())


def _whole(model: ResNet, head: nn.Linear) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    state |= {f"fc.{name}": value.detach().clone() for name, value in head.state_dict().items()}
    return state
