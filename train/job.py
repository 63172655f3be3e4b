"""A training job as a straight line: channels -> photos -> network -> artifact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torchvision.models.resnet import ResNet

from container import contract
from container.artifact import Manifest
from container.contract import SageMakerPaths
from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.channels import Channels, Photo, PhotoSets, find_channels, list_photos, split_validation, without
from train.config import TrainConfig
from train.data import (
    EvaluationPhotos,
    Normaliser,
    TrainingBatches,
    TrainingPhotos,
    evaluation_loader,
    find_unreadable,
    training_loader,
)
from train.export import export
from train.loop import Outcome, fit, predict, report
from train.model import build_resnet, load_pretrained
from train.stop import STOP
from train.workers import worker_count

_MAX_SAMPLES: Final = 16


def run_job(paths: SageMakerPaths, config: TrainConfig) -> Manifest:
    """Train and leave an artifact in the model folder. Raises KennelError, or Stopped before anything can be saved."""
    channels = find_channels(paths)
    sets = open_photo_sets(channels, seed=config.seed)
    spec = Preprocessing.for_image_size(config.image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config, sets, channels)
    announce(config, sets, device)
    outcome = train_network(model.to(device), config, sets, spec=spec, device=device)
    model.load_state_dict(outcome.state)
    metrics = final_metrics(model, outcome, sets, spec, config=config, device=device)
    started = time.perf_counter()
    samples = sample_inputs(sets.validation, spec)
    manifest = export(
        model, config, paths.model, class_names=sets.class_names, spec=spec, samples=samples, metrics=metrics
    )
    print(f"saved {paths.model} (version {manifest.version}) in {time.perf_counter() - started:.1f} s", flush=True)
    return manifest


def open_photo_sets(channels: Channels, *, seed: int) -> PhotoSets:
    """List the photos, leave out those that cannot be read, each with a warning, and hold out a validation set."""
    listed = list_photos(channels)
    unreadable = find_unreadable([photo.path for photo in (*listed.training, *listed.validation, *listed.test)])
    for path, reason in unreadable.items():
        print(f"warning: {path} is left out: {reason}", flush=True)
    return split_validation(without(listed, unreadable), seed=seed)


def build_model(config: TrainConfig, sets: PhotoSets, channels: Channels) -> ResNet:
    """The network, its fresh layers drawn from the seed."""
    torch.manual_seed(config.seed)
    model = build_resnet(config.architecture, len(sets.class_names))
    if config.pretrained:
        source = load_pretrained(model, config.architecture, channel=channels.pretrained)
        print(f"pretrained weights from {source}", flush=True)
    return model


def announce(config: TrainConfig, sets: PhotoSets, device: torch.device) -> None:
    print(
        f"training {config.architecture} on {device.type}: {len(sets.class_names)} classes, "
        f"{len(sets.training)} training, {len(sets.validation)} validation and {len(sets.test)} test photos",
        flush=True,
    )


def train_network(
    model: ResNet, config: TrainConfig, sets: PhotoSets, *, spec: Preprocessing, device: torch.device
) -> Outcome:
    batches = TrainingBatches(len(sets.training), batch_size=config.batch_size, seed=config.seed)
    workers = loader_workers(config, spec, device)
    return fit(
        model,
        config,
        loader=training_loader(
            TrainingPhotos(sets.training, spec, seed=config.seed, flip=config.flip),
            batches,
            workers=workers,
            pin_memory=device.type == "cuda",
        ),
        batches=batches,
        validation=evaluation_loader(
            EvaluationPhotos(sets.validation, spec), batch_size=config.batch_size, workers=workers
        ),
        normalise=Normaliser(spec, device),
    )


def loader_workers(config: TrainConfig, spec: Preprocessing, device: torch.device) -> int:
    # Evaluation's batches are the largest: float32 of three channels.
    batch_bytes = config.batch_size * 3 * spec.crop_size**2 * 4
    return worker_count(config.workers, batch_bytes=batch_bytes, cuda=device.type == "cuda")


def final_metrics(
    model: ResNet, outcome: Outcome, sets: PhotoSets, spec: Preprocessing, *, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Figures of the weights that are kept: validation's, and test's where there is such a channel."""
    best = outcome.best
    if best is None:
        print(f"stopped after {outcome.steps} step(s) of the first epoch: weights are saved unvalidated", flush=True)
        return {}
    metrics = {
        contract.VALIDATION_LOSS.name: best.validation_loss,
        contract.VALIDATION_ACCURACY.name: best.validation_accuracy,
        "epoch": float(best.number),
    }
    if sets.test and not STOP.requested():
        loader = evaluation_loader(
            EvaluationPhotos(sets.test, spec),
            batch_size=config.batch_size,
            workers=loader_workers(config, spec, device),
        )
        found = predict(model, loader, Normaliser(spec, device))
        for metric, value in ((contract.TEST_LOSS, found.loss), (contract.TEST_ACCURACY, found.accuracy)):
            report(metric, value)
            metrics[metric.name] = value
    return metrics


def sample_inputs(photos: Sequence[Photo], spec: Preprocessing) -> Float32Array:
    """Real inputs on which the exported network is checked."""
    return np.stack([preprocess(photo.path.read_bytes(), spec) for photo in photos[:_MAX_SAMPLES]])
