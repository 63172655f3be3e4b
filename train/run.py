"""A training job as a straight line: channels -> photos -> network -> artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

from container.contract import SageMakerPaths
from container.errors import TrainingError
from container.memory import keep_freed_memory
from container.preprocessing import Preprocessing
from train.channels import Channels, find_channels
from train.config import TrainConfig
from train.data import Normaliser, TrainingBatches, TrainingPhotos, training_loader
from train.distributed import ALONE, World
from train.doctor import Findings, table
from train.features import Features, Shelf, extract
from train.head import fit_head, warm_up_head
from train.job import Job
from train.loop import Setting, Trainer
from train.model import build_resnet, load_pretrained, quiet_branches, weights_digest
from train.outcome import Outcome
from train.recipe import class_weights
from train.saving import finish
from train.sets import ROLES, check_leaks, check_photo_sets, open_photo_sets
from train.timeline import Timeline
from train.workers import threads_within_quota


def run_job(paths: SageMakerPaths, config: TrainConfig, world: World = ALONE) -> None:
    """Train and leave an artifact in the model folder. Raises KennelError, or Stopped before anything can be saved."""
    if world.size == 1:  # Those of several are told by who starts them.
        keep_to_quota()
    timeline = Timeline()
    channels = find_channels(paths, gather=world.gather)
    with timeline.phase("looking at the photos"):
        sets, findings = open_photo_sets(channels, seed=config.seed, world=world)
        if world.leads:
            report_findings(findings, paths)
        check_photo_sets(sets)
        check_leaks(findings, strict=config.strict_data)
    spec = Preprocessing.for_image_size(config.image_size)
    job = Job(paths=paths, config=config, world=world, sets=sets, spec=spec, timeline=timeline)
    with timeline.phase("network and its weights"):
        model = build_model(job, channels)
        job = replace(job, pretrained=weights_digest(model, head=False) if config.pretrained else "")
    announce(job)
    with memory_named(config):
        outcome = train_network(model.to(world.device), job)
        model.load_state_dict(outcome.state)
        finish(model, outcome, job)


@contextmanager
def memory_named(config: TrainConfig) -> Iterator[None]:
    """Say whose memory did not suffice, and what needs less. Raises TrainingError."""
    try:
        yield
    except RuntimeError as error:
        of_gpu = isinstance(error, torch.OutOfMemoryError)
        if not of_gpu and "DefaultCPUAllocator: can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{'the GPU' if of_gpu else 'this machine'} has too little memory for batch_size={config.batch_size} and "
            f"image_size={config.image_size}: lower one of them, or take an instance with more memory; strategy=head "
            f"needs less ({str(error).partition(chr(10))[0]})"
        ) from error


def keep_to_quota(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """torch counts the host's cores, and is throttled where the container may use fewer. OMP_NUM_THREADS is obeyed."""
    threads = threads_within_quota(root)
    if threads and "OMP_NUM_THREADS" not in env:
        torch.set_num_threads(min(threads, torch.get_num_threads()))


def report_findings(findings: Findings, paths: SageMakerPaths) -> None:
    """The data doctor's table and its JSON."""
    print(f"data doctor:\n{table(findings)}", flush=True)
    text = json.dumps(findings.to_json(), indent=2)
    (paths.output_data / "doctor.json").write_text(text, encoding="utf-8")


def build_model(job: Job, channels: Channels) -> ResNet:
    """The network, its fresh layers drawn from the seed."""
    torch.manual_seed(job.config.seed)
    model = build_resnet(job.config.architecture, len(job.sets.class_names))
    if not job.config.pretrained and job.batchnorm_frozen:
        quiet_branches(model)
    if job.config.pretrained:
        source = load_pretrained(model, job.config.architecture, channel=channels.pretrained)
        job.world.say(f"pretrained weights from {source}")
    return model


def announce(job: Job) -> None:
    sets = job.sets
    training, validation, test = (sets.count(role) for role in ROLES)
    job.world.say(
        f"training {job.config.architecture} ({job.config.plan}) in {job.world.size} process(es) on "
        f"{job.world.device.type}: {len(sets.class_names)} classes, {training} training, "
        f"{validation} validation and {test} test photos"
    )


def train_network(model: ResNet, job: Job) -> Outcome:
    """Follow the strategy."""
    weights = class_weights(job.sets.class_counts(), balanced=job.config.class_weights)
    if job.config.plan == "head":
        for name in ("profile", "flip", "randaugment"):
            if (value := getattr(job.config, name)) != getattr(TrainConfig(), name):
                text = f"warning: {name}={json.dumps(value)} is for steps of all layers, and strategy=head has none"
                job.world.say(text)
        training, validation = features_of(model, job)
        with job.timeline.phase("fitting the head"):
            return fit_head(model, training, validation, job.config, weights=weights, world=job.world)
    keep_freed_memory()
    trainer = Trainer(model, setting_of(job, weights))
    if not trainer.resume() and job.config.plan == "gradual":
        training, validation = features_of(model, job)
        with job.timeline.phase("fitting the head"):
            head = warm_up_head(model, training, validation, job.config, weights=weights, world=job.world)
        trainer.start_from(*head)
    with job.timeline.phase("training and validating"):
        return trainer.fit()


def features_of(model: ResNet, job: Job) -> tuple[Features, Features]:
    with job.timeline.phase("features of the frozen layers"):
        training, validation = (
            extract(
                model,
                job.sets.own(role),
                job.spec,
                batch_size=job.evaluation_batch,
                workers=job.workers,
                shelf=Shelf(folder=job.shelf, role=role),
                world=job.world,
            )
            for role in ("training", "validation")
        )
    return training, validation


def setting_of(job: Job, weights: Tensor) -> Setting:
    config, world, shards = job.config, job.world, job.sets.shards
    # Where each process has photos of its own, it draws from them alone, and numbers them after those before it.
    photos = job.sets.own("training") if shards else job.sets.photos.training
    first = sum(shards[: world.rank]) if shards else 0
    batches = TrainingBatches(len(photos), batch_size=config.batch_size, seed=config.seed, world=world, shards=shards)
    dataset = TrainingPhotos(
        photos, job.spec, seed=config.seed, flip=config.flip, randaugment=config.randaugment, first=first
    )
    return Setting(
        config=config,
        loader=training_loader(dataset, batches, workers=job.workers, pin_memory=world.device.type == "cuda"),
        batches=batches,
        validate=job.validate,
        normalise=Normaliser(job.spec, world.device),
        class_weights=weights,
        world=world,
        checkpoints=job.checkpoints,
        fingerprint=job.fingerprint,
        batchnorm_frozen=job.batchnorm_frozen,
        profile=job.paths.output_data if config.profile and world.leads else None,
    )
