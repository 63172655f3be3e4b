"""A training job: what is trained, on what, by whom, and what it has to work with."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import nn

from container.contract import SageMakerPaths
from container.preprocessing import Preprocessing
from train.config import TrainConfig, checkpoint_folder
from train.data import EvaluationPhotos, Normaliser, evaluation_loader
from train.distributed import World
from train.folders import SHARED_FEATURES
from train.predictions import Predictions, predict
from train.sets import ROLES, JobSets
from train.stop import STOP
from train.timeline import Timeline
from train.workers import largest_batch_bytes, worker_count

# Hyperparameters that change how a job runs, not what it computes: a job may be resumed with others.
_INCIDENTAL: Final = (
    *("workers", "checkpoint_seconds", "top_k", "report", "profile", "quantize", "max_accuracy_drop", "coverage"),
    "strict_data",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and by whom."""

    paths: SageMakerPaths
    config: TrainConfig
    world: World
    sets: JobSets
    spec: Preprocessing
    timeline: Timeline = field(default_factory=Timeline)
    pretrained: str = ""  # what tells the weights that training starts from from others, if it starts from any

    @property
    def evaluation_batch(self) -> int:
        """Photos in a batch of evaluation, whose float32 then takes no more shared memory than training's bytes."""
        return max(1, self.config.batch_size // 4)

    @property
    def largest_batch(self) -> int:
        """Photos in a step of the process that has most: all take as many steps, of `batch_size` photos on average."""
        shards = self.sets.shards or (1,)
        return math.ceil(self.config.batch_size * max(shards) * len(shards) / sum(shards))

    @cached_property
    def workers(self) -> int:
        """Loader processes of each training process."""
        return worker_count(
            self.config.workers,
            batch_bytes=largest_batch_bytes(self.largest_batch, self.spec.crop_size),
            cuda=self.world.device.type == "cuda",
            processes=self.world.local_size,
        )

    @property
    def checkpoints(self) -> Path | None:
        """Where the platform, or the user, wants checkpoints: SageMaker makes the folder if they were asked for."""
        folder = checkpoint_folder(self.paths)
        return folder if folder.is_dir() else None

    @property
    def shelf(self) -> Path | None:
        """Where features of frozen layers are kept: by the checkpoints, or where the trials of a search share them."""
        shared = self.paths.base / SHARED_FEATURES
        return shared if shared.is_dir() else self.checkpoints

    @property
    def batchnorm_frozen(self) -> bool:
        """BatchNorm keeps pretrained statistics; and between processes on CPUs, where torch cannot synchronise it."""
        return self.config.pretrained or (self.world.size > 1 and self.world.device.type == "cpu")

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must have been computed from to be gone on with."""
        settings = {name: value for name, value in self.config.to_json().items() if name not in _INCIDENTAL}
        photos = [
            f"{role}/{photo.label}/{photo.path.name}/{photo.digest}" for role in ROLES for photo in self.sets.own(role)
        ]
        described = json.dumps([settings, self.pretrained, self.sets.class_names, self.world.gather(photos)])
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def stopping(self) -> bool:
        """Whether any process was asked to stop; the same answer in all."""
        return self.world.any(STOP.requested())[0]

    def validate(self, model: nn.Module) -> Predictions:
        return self.predict(model, "validation")

    def predict(self, model: nn.Module, role: str) -> Predictions:
        """Every photo of the role once, shared between the processes."""
        own = self.sets.own(role)
        loader = evaluation_loader(
            EvaluationPhotos(own, self.spec), batch_size=self.evaluation_batch, workers=min(self.workers, len(own))
        )
        return predict(model, loader, Normaliser(self.spec, self.world.device), world=self.world)
