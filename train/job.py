"""A training job as a straight line: channels -> photos -> network -> artifact."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from container import contract
from container.artifact import Manifest
from container.contract import SageMakerPaths
from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.calibration import calibrate
from train.channels import Channels, Photo, find_channels
from train.checkpoint import discard_staged
from train.config import TrainConfig
from train.data import (
    EvaluationPhotos,
    Normaliser,
    TrainingBatches,
    TrainingPhotos,
    evaluation_loader,
    training_loader,
)
from train.distributed import ALONE, World
from train.doctor import Findings, table
from train.export import build_network, write_artifact
from train.head import Features, extract, fit_head, warm_up_head
from train.loop import Setting, Trainer
from train.map_fidelity import map_correlation
from train.model import build_resnet, load_pretrained, quiet_branches
from train.outcome import Outcome
from train.predictions import Predictions, predict
from train.quantization import LEAST_PHOTOS, answers, judge, quantize
from train.recipe import class_weights
from train.results import Results
from train.sets import ROLES, JobSets, check_leaks, open_photo_sets
from train.stop import STOP
from train.timeline import Timeline
from train.workers import worker_count

_MAX_SAMPLES: Final = 16
# Hyperparameters that change how a job runs, not what it computes: a job may be resumed with others.
_INCIDENTAL: Final = (
    *("workers", "checkpoint_seconds", "top_k", "report", "profile", "quantize", "max_accuracy_drop", "coverage"),
    "strict_data",
)


def run_job(paths: SageMakerPaths, config: TrainConfig, world: World = ALONE) -> None:
    """Train and leave an artifact in the model folder. Raises KennelError, or Stopped before anything can be saved."""
    timeline = Timeline()
    channels = find_channels(paths)
    with timeline.phase("looking at the photos"):
        sets, findings = open_photo_sets(channels, seed=config.seed, world=world)
        if world.leads:
            report_findings(findings, paths, strict=config.strict_data)
    spec = Preprocessing.for_image_size(config.image_size)
    job = Job(paths=paths, config=config, world=world, sets=sets, spec=spec, timeline=timeline)
    model = build_model(job, channels)
    announce(job)
    outcome = train_network(model.to(world.device), job)
    model.load_state_dict(outcome.state)
    finish(model, outcome, job)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and by whom."""

    paths: SageMakerPaths
    config: TrainConfig
    world: World
    sets: JobSets
    spec: Preprocessing
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def workers(self) -> int:
        """Loader processes; evaluation's batches are the largest, float32 of three channels."""
        batch_bytes = self.config.batch_size * 3 * self.spec.crop_size**2 * 4
        return worker_count(
            self.config.workers,
            batch_bytes=batch_bytes,
            cuda=self.world.device.type == "cuda",
            processes=self.world.local_size,
        )

    @property
    def checkpoints(self) -> Path | None:
        """Where the platform, or the user, wants checkpoints: SageMaker makes the folder if they were asked for."""
        folder = checkpoint_folder(self.paths)
        return folder if folder.is_dir() else None

    @property
    def batchnorm_frozen(self) -> bool:
        """BatchNorm keeps pretrained statistics; and between processes on CPUs, where torch cannot synchronise it."""
        return self.config.pretrained or (self.world.size > 1 and self.world.device.type == "cpu")

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must have been computed from to be gone on with."""
        settings = {name: value for name, value in self.config.to_json().items() if name not in _INCIDENTAL}
        photos = [f"{role}/{photo.label}/{photo.path.name}" for role in ROLES for photo in self.sets.own(role)]
        described = json.dumps([settings, self.sets.class_names, self.world.gather(photos)])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def validate(self, model: nn.Module) -> Predictions:
        return self.predict(model, "validation")

    def predict(self, model: nn.Module, role: str) -> Predictions:
        """Every photo of the role once, shared between the processes."""
        own = self.sets.own(role)
        loader = evaluation_loader(
            EvaluationPhotos(own, self.spec), batch_size=self.config.batch_size, workers=min(self.workers, len(own))
        )
        return predict(model, loader, Normaliser(self.spec, self.world.device), world=self.world)


def checkpoint_folder(paths: SageMakerPaths) -> Path:
    """/opt/ml/checkpoints, or the LocalPath that the job's CheckpointConfig names."""
    try:
        value = json.loads((paths.config / "checkpointconfig.json").read_text(encoding="utf-8"))
        return Path(value.get("LocalPath") or paths.checkpoints)
    except (OSError, ValueError, AttributeError, TypeError):
        return paths.checkpoints


def report_findings(findings: Findings, paths: SageMakerPaths, *, strict: bool) -> None:
    """The data doctor's table, its JSON, and its verdict. Raises DataError."""
    print(f"data doctor:\n{table(findings)}", flush=True)
    text = json.dumps(findings.to_json(), indent=2)
    (paths.output_data / "doctor.json").write_text(text, encoding="utf-8")
    check_leaks(findings, strict=strict)


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
        training, validation = features_of(model, job)
        return fit_head(model, training, validation, job.config, weights=weights, world=job.world)
    trainer = Trainer(model, setting_of(job, weights))
    if job.checkpoints and job.world.leads:
        discard_staged(job.checkpoints)
    if not trainer.resume() and job.config.plan == "gradual":
        training, validation = features_of(model, job)
        trainer.start_from(*warm_up_head(model, training, validation, job.config, weights=weights, world=job.world))
    with job.timeline.phase("training and validating"):
        return trainer.fit()


def features_of(model: ResNet, job: Job) -> tuple[Features, Features]:
    with job.timeline.phase("features of the frozen layers"):
        training, validation = (
            extract(model, job.sets.own(role), job.spec, workers=job.workers, world=job.world)
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


def finish(model: ResNet, outcome: Outcome, job: Job) -> None:
    """Test, quantise, calibrate and save the weights that are kept (rank 0 the last three)."""
    found = outcome.found
    if found is None and outcome.best is not None:
        found = job.predict(model, "validation")
    answered = job.sets.answered("validation")
    test = None
    if outcome.best is not None and job.sets.count("test") and not job.world.any(STOP.requested())[0]:
        test = job.predict(model, "test")
        job.world.say(contract.TEST_LOSS.line(test.loss))
        job.world.say(contract.TEST_ACCURACY.line(test.accuracy))
    if outcome.best is None:
        job.world.say(f"stopped after {outcome.steps} step(s) of the first epoch: weights are saved unvalidated")
    if job.world.leads:
        save(model, job, Results(outcome=outcome, photos=answered, validation=found, test=test))


def save(model: ResNet, job: Job, results: Results) -> None:
    started = time.perf_counter()
    photos = job.sets.photos
    samples = sample_inputs(photos.validation or photos.training, job.spec)
    with job.timeline.phase("export"):
        network = build_network(model, image_size=job.spec.crop_size, samples=samples)
    with job.timeline.phase("int8"):
        results = prove_int8(network, model.fc.weight.detach().cpu().numpy(), job, results)
    if results.shipped is not None:
        results = replace(results, calibration=calibrate(results.shipped, coverage=job.config.coverage))
    with job.timeline.phase("export"):
        manifest = write_artifact(job.paths.model, model, results.networks(network), draft_manifest(job, results))
    seconds = time.perf_counter() - started
    print(f"saved {job.paths.model} (version {manifest.version}) in {seconds:.1f} s", flush=True)
    if job.config.report and not STOP.requested():
        write_report_of(model, job, results, network)


def write_report_of(model: ResNet, job: Job, results: Results, network: bytes) -> None:
    """A page for people, beside the artifact."""
    from train.figures import collect
    from train.report import write_report  # TensorBoard takes a second to import.

    figures = collect(
        results,
        config=job.config,
        class_names=job.sets.class_names,
        seconds=job.timeline.seconds,
    )
    if figures is None:
        return
    served = results.int8 if results.int8_ships and results.int8 is not None else network
    folder = job.paths.output_data
    write_report(folder, figures, network=served, head=model.fc.weight.detach().cpu().numpy(), spec=job.spec)
    print(f"report: {folder / 'report.html'}", flush=True)


def prove_int8(network: bytes, head: Float32Array, job: Job, results: Results) -> Results:
    """Make int8 and compare it with float32 on this host's validation photos, if that is wanted and can tell."""
    always = job.config.quantize == "always"
    photos = job.sets.photos.validation
    if job.config.quantize == "never" or STOP.requested() or results.validation is None:
        return results
    if len(photos) < LEAST_PHOTOS and not always:
        print(f"float32 is served: {len(photos)} validation photos are too few to judge int8 by", flush=True)
        return results
    int8 = quantize(network, job.sets.photos.training, job.spec)
    exact, rounded = (answers(engine, photos, job.spec) for engine in (network, int8))
    verdict = judge(rounded, exact, max_drop_points=job.config.max_accuracy_drop, always=always)
    print(f"{'int8' if verdict.ships else 'float32'} is served: {verdict.reason}", flush=True)
    alike = map_correlation(network, int8, head, photos, job.spec)
    return replace(results, verdict=verdict, int8=int8, int8_answers=rounded, int8_maps=alike, photos=photos)


def draft_manifest(job: Job, results: Results) -> Manifest:
    calibration = results.calibration
    return Manifest(
        architecture=job.config.architecture,
        class_names=job.sets.class_names,
        preprocessing=job.spec,
        top_k=job.config.top_k,
        temperature=calibration.temperature if calibration else 1.0,
        confidence_threshold=calibration.threshold if calibration else None,
        metrics=results.metrics(),
        hyperparameters=job.config.to_json(),
    )


def sample_inputs(photos: Sequence[Photo], spec: Preprocessing) -> Float32Array:
    """Real inputs on which the exported network is checked."""
    return np.stack([preprocess(photo.path.read_bytes(), spec) for photo in photos[:_MAX_SAMPLES]])
