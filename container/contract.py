"""What SageMaker expects of the image, and the names that its two halves share (standard library only)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# CreateTrainingJob shows the first 1,024 characters of the failure file as FailureReason.
FAILURE_MAX_CHARS = 1024

DEFAULT_PORT = 8080
# Real-time endpoints accept bodies of 25 MB; the limit is settable because batch and async jobs allow more.
DEFAULT_MAX_PAYLOAD_MB = 25
# A real-time invocation is cut off after 60 s; ours ends before that, with an answer.
DEFAULT_DEADLINE_S = 55
# Batch transform waits longer for an answer (InvocationsTimeoutInSeconds, 600 unless told).
DEFAULT_BATCH_DEADLINE_S = 590
# SageMaker sends SIGKILL 30 s after SIGTERM to a serving container.
DRAIN_S = 25

# How the folders of a data set's parts are called, in lower case, by the channel that each part is.
PARTS: Mapping[str, tuple[str, ...]] = {
    "training": ("training", "train"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
# How a hyperparameter says yes or no, in any case.
TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")
# The suffixes, in lower case, of photos that are read.
PHOTO_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


@dataclass(frozen=True)
class SageMakerPaths:
    """The folders of the container contract, below `base` (/opt/ml; SAGEMAKER_BASE_DIR moves it)."""

    base: Path = Path("/opt/ml")

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> SageMakerPaths:
        """Read SAGEMAKER_BASE_DIR, the variable that sagemaker-training itself obeys."""
        return cls(Path(env.get("SAGEMAKER_BASE_DIR") or "/opt/ml"))

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def config(self) -> Path:
        return self.input / "config"

    @property
    def hyperparameters(self) -> Path:
        return self.config / "hyperparameters.json"

    @property
    def input_data_config(self) -> Path:
        return self.config / "inputdataconfig.json"

    @property
    def resource_config(self) -> Path:
        return self.config / "resourceconfig.json"

    @property
    def data(self) -> Path:
        """Parent of the channels. SageMaker puts other entries beside them: list the configuration, not this."""
        return self.input / "data"

    def channel(self, name: str) -> Path:
        return self.data / name

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def models(self) -> Path:
        """Where a multi-model endpoint unpacks its models."""
        return self.base / "models"

    @property
    def checkpoints(self) -> Path:
        return self.base / "checkpoints"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def output_data(self) -> Path:
        return self.output / "data"

    @property
    def failure(self) -> Path:
        return self.output / "failure"


@dataclass(frozen=True)
class Metric:
    """A figure that training prints alone on a line, as `name=0.123456`, for SageMaker to find by `regex`."""

    name: str

    @property
    def regex(self) -> str:
        """One group, a number. The names are such that no regex matches another metric's line."""
        return rf"{self.name}=([0-9]+\.[0-9]+)"

    def line(self, value: float) -> str:
        """Fixed decimals: SageMaker's regexes know no exponents."""
        return f"{self.name}={value:.6f}"


TRAIN_LOSS = Metric("train:loss")
TRAIN_ACCURACY = Metric("train:accuracy")
TRAIN_IMAGES_PER_SECOND = Metric("train:images_per_second")
VALIDATION_LOSS = Metric("validation:loss")
VALIDATION_ACCURACY = Metric("validation:accuracy")
VALIDATION_BEST_ACCURACY = Metric("validation:best_accuracy")
TEST_LOSS = Metric("test:loss")
TEST_ACCURACY = Metric("test:accuracy")

METRICS = (
    TRAIN_LOSS,
    TRAIN_ACCURACY,
    TRAIN_IMAGES_PER_SECOND,
    VALIDATION_LOSS,
    VALIDATION_ACCURACY,
    VALIDATION_BEST_ACCURACY,
    TEST_LOSS,
    TEST_ACCURACY,
)


def metric_definitions() -> list[dict[str, str]]:
    """The metrics as CreateTrainingJob's MetricDefinitions."""
    return [{"Name": metric.name, "Regex": metric.regex} for metric in METRICS]
