"""A training job as a straight line: channels -> photos -> network -> artifact."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from container import contract
from container.contract import SageMakerPaths
from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.channels import Channels, Photo, PhotoSets, find_channels, list_photos, split_validation, without
from train.checkpoint import discard_staged
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
from train.distributed import ALONE, World
from train.export import export
from train.head import Features, extract, fit_head, warm_up_head
from train.loop import Outcome, Predictions, Setting, Trainer, predict, report
from train.model import build_resnet, load_pretrained
from train.recipe import class_weights
from train.stop import STOP
from train.workers import worker_count

_MAX_SAMPLES: Final = 16
# Hyperparameters that change how a job runs, not what it computes: a job may be resumed with others.
_INCIDENTAL: Final = (
    *("workers", "checkpoint_seconds", "top_k", "report", "profile", "quantize", "max_accuracy_drop", "coverage"),
    "strict_data",
)


def run_job(paths: SageMakerPaths, config: TrainConfig, world: World = ALONE) -> None:
    """Train and leave an artifact in the model folder. Raises KennelError, or Stopped before anything can be saved."""
    channels = find_channels(paths)
    sets = open_photo_sets(channels, seed=config.seed)
    job = Job(paths=paths, config=config, world=world, sets=sets, spec=Preprocessing.for_image_size(config.image_size))
    model = build_model(job, channels)
    announce(job)
    outcome = train_network(model.to(world.device), job)
    model.load_state_dict(outcome.state)
    metrics = final_metrics(model, outcome, job)
    if world.leads:
        save(model, job, metrics)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and by whom."""

    paths: SageMakerPaths
    config: TrainConfig
    world: World
    sets: PhotoSets
    spec: Preprocessing

    @property
    def workers(self) -> int:
        """Loader processes; evaluation's batches are the largest, float32 of three channels."""
        batch_bytes = self.config.batch_size * 3 * self.spec.crop_size**2 * 4
        return worker_count(self.config.workers, batch_bytes=batch_bytes, cuda=self.world.device.type == "cuda")

    @property
    def checkpoints(self) -> Path | None:
        """Where the platform, or the user, wants checkpoints: SageMaker makes the folder if they were asked for."""
        return self.paths.checkpoints if self.paths.checkpoints.is_dir() else None

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must have been computed from to be gone on with."""
        settings = {name: value for name, value in self.config.to_json().items() if name not in _INCIDENTAL}
        photos = [f"{photo.label}/{photo.path.name}" for photo in (*self.sets.training, *self.sets.validation)]
        described = json.dumps([settings, self.sets.class_names, photos, self.world.size])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def validate(self, model: nn.Module) -> Predictions:
        return self.predict(model, self.sets.validation)

    def predict(self, model: nn.Module, photos: Sequence[Photo]) -> Predictions:
        """Every photo once, shared between the processes."""
        own = self.own(photos)
        loader = evaluation_loader(
            EvaluationPhotos(own, self.spec), batch_size=self.config.batch_size, workers=min(self.workers, len(own))
        )
        return predict(model, loader, Normaliser(self.spec, self.world.device), world=self.world)

    def own(self, photos: Sequence[Photo]) -> Sequence[Photo]:
        """This process's share."""
        return photos[self.world.rank :: self.world.size]


def open_photo_sets(channels: Channels, *, seed: int) -> PhotoSets:
    """List the photos, leave out those that cannot be read, each with a warning, and hold out a validation set."""
    listed = list_photos(channels)
    unreadable = find_unreadable([photo.path for photo in (*listed.training, *listed.validation, *listed.test)])
    for path, reason in unreadable.items():
        print(f"warning: {path} is left out: {reason}", flush=True)
    return split_validation(without(listed, unreadable), seed=seed)


def build_model(job: Job, channels: Channels) -> ResNet:
    """The network, its fresh layers drawn from the seed."""
    torch.manual_seed(job.config.seed)
    model = build_resnet(job.config.architecture, len(job.sets.class_names))
    if job.config.pretrained:
        source = load_pretrained(model, job.config.architecture, channel=channels.pretrained)
        job.world.say(f"pretrained weights from {source}")
    return model


def announce(job: Job) -> None:
    sets = job.sets
    job.world.say(
        f"training {job.config.architecture} ({job.config.plan}) in {job.world.size} process(es) on "
        f"{job.world.device.type}: {len(sets.class_names)} classes, {len(sets.training)} training, "
        f"{len(sets.validation)} validation and {len(sets.test)} test photos"
    )


def train_network(model: ResNet, job: Job) -> Outcome:
    """Follow the strategy."""
    counts = Counter(photo.label for photo in job.sets.training)
    weights = class_weights(
        [counts[label] for label in range(len(job.sets.class_names))], balanced=job.config.class_weights
    )
    if job.config.plan == "head":
        training, validation = features_of(model, job)
        return fit_head(model, training, validation, job.config, weights=weights, world=job.world)
    trainer = Trainer(model, setting_of(job, weights))
    if job.checkpoints and job.world.leads:
        discard_staged(job.checkpoints)
    if not trainer.resume() and job.config.plan == "gradual":
        training, validation = features_of(model, job)
        trainer.start_from(*warm_up_head(model, training, validation, job.config, weights=weights, world=job.world))
    return trainer.fit()


def features_of(model: ResNet, job: Job) -> tuple[Features, Features]:
    training, validation = (
        extract(model, job.own(photos), job.spec, workers=job.workers, world=job.world)
        for photos in (job.sets.training, job.sets.validation)
    )
    return training, validation


def setting_of(job: Job, weights: Tensor) -> Setting:
    config, sets, world = job.config, job.sets, job.world
    batches = TrainingBatches(len(sets.training), batch_size=config.batch_size, seed=config.seed, world=world)
    photos = TrainingPhotos(sets.training, job.spec, seed=config.seed, flip=config.flip, randaugment=config.randaugment)
    return Setting(
        config=config,
        loader=training_loader(photos, batches, workers=job.workers, pin_memory=world.device.type == "cuda"),
        batches=batches,
        validate=job.validate,
        normalise=Normaliser(job.spec, world.device),
        class_weights=weights,
        world=world,
        checkpoints=job.checkpoints,
        fingerprint=job.fingerprint,
        batchnorm_frozen=config.pretrained or (world.size > 1 and world.device.type == "cpu"),
    )


def final_metrics(model: ResNet, outcome: Outcome, job: Job) -> dict[str, float]:
    """Figures of the weights that are kept: validation's, and test's where there is such a channel."""
    best = outcome.best
    if best is None:
        job.world.say(f"stopped after {outcome.steps} step(s) of the first epoch: weights are saved unvalidated")
        return {}
    metrics = {
        contract.VALIDATION_LOSS.name: best.validation_loss,
        contract.VALIDATION_ACCURACY.name: best.validation_accuracy,
        "epoch": float(best.number),
    }
    if job.sets.test and not job.world.any(STOP.requested())[0]:
        found = job.predict(model, job.sets.test)
        for metric, value in ((contract.TEST_LOSS, found.loss), (contract.TEST_ACCURACY, found.accuracy)):
            if job.world.leads:
                report(metric, value)
            metrics[metric.name] = value
    return metrics


def save(model: ResNet, job: Job, metrics: dict[str, float]) -> None:
    started = time.perf_counter()
    manifest = export(
        model,
        job.config,
        job.paths.model,
        class_names=job.sets.class_names,
        spec=job.spec,
        samples=sample_inputs(job.sets.validation, job.spec),
        metrics=metrics,
    )
    seconds = time.perf_counter() - started
    print(f"saved {job.paths.model} (version {manifest.version}) in {seconds:.1f} s", flush=True)


def sample_inputs(photos: Sequence[Photo], spec: Preprocessing) -> Float32Array:
    """Real inputs on which the exported network is checked."""
    return np.stack([preprocess(photo.path.read_bytes(), spec) for photo in photos[:_MAX_SAMPLES]])
