"""SageMaker's training and tuning jobs as the requests that start them: pure functions, no AWS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from container.contract import metric_definitions
from deploy.errors import DeployError
from deploy.profile import Profile, Training

# A job that waits for spot capacity gives up after twice the time that it may run.
_SPOT_WAIT_FACTOR = 2
# What the image trains where nothing is said (train/config.py; a test holds the two together).
DEFAULT_EPOCHS = 10
# CreateTrainingJob's pattern; a tuning job's is the same within 32 characters.
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
STRATEGIES = ("Bayesian", "Random", "Hyperband", "Grid")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, wherever it runs. `channels` are S3 prefixes by channel name."""

    name: str
    image: str
    bucket: str
    channels: Mapping[str, str]
    settings: Training
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    warm_minutes: int = 0
    checkpoints_of: str = ""

    @property
    def output(self) -> str:
        """Below this SageMaker puts JOB/output/model.tar.gz; `ec2 train` keeps the same layout."""
        return f"s3://{self.bucket}/jobs"

    @property
    def artifact(self) -> str:
        return f"{self.output}/{self.name}/output/model.tar.gz"

    @property
    def checkpoints(self) -> str:
        """A job that continues another one shares its checkpoints.

        It ends in a slash: SageMaker fetches every key that starts with it, so that `dogs-1` would also get the
        checkpoints of `dogs-10` (https://github.com/syne-tune/syne-tune/pull/363).
        """
        return f"s3://{self.bucket}/checkpoints/{self.checkpoints_of or self.name}/"

    @property
    def max_runtime_s(self) -> int:
        return int(self.settings.max_hours * 3600)


def new_name(profile: Profile, *, what: str = "train", now: datetime | None = None) -> str:
    """`kennel-dev-train-1122-101530`: unique to the second, and short enough for a tuning job (32 characters)."""
    return f"{profile.prefix}-{what}-{(now or datetime.now(UTC)):%m%d-%H%M%S}"


def check_hyperparameters(pairs: list[str]) -> dict[str, str]:
    """`epochs=3` -> {"epochs": "3"}, within CreateTrainingJob's limits. The image checks names and values."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise DeployError(f"--set {pair}: write NAME=VALUE, e.g. --set epochs=3")
        if name in values:
            raise DeployError(f"--set {name} is given twice: {values[name]} and {value}")
        if len(name) > 256 or len(value) > 2500:
            raise DeployError(f"--set {name[:40]}: a name has at most 256 characters, a value 2,500")
        values[name] = value
    return values


def epochs_of(hyperparameters: Mapping[str, str]) -> int:
    """How often the photos will be gone through, for estimates; the image checks the value itself."""
    given = hyperparameters.get("epochs", "")
    return max(1, int(given)) if given.isdecimal() else DEFAULT_EPOCHS


def read_channels(pairs: list[str]) -> dict[str, str]:
    """`pretrained=s3://bucket/weights/` -> {"pretrained": "s3://bucket/weights/"}."""
    channels = {}
    for pair in pairs:
        name, _, uri = pair.partition("=")
        if not name or not uri.startswith("s3://"):
            raise DeployError(f"--channel {pair}: write NAME=s3://BUCKET/FOLDER/, e.g. pretrained=s3://…/weights/")
        channels[name] = uri
    return channels


def training_request(job: Job, *, role_arn: str, profile: Profile) -> dict[str, Any]:
    """CreateTrainingJob."""
    return {
        "TrainingJobName": job.name,
        "HyperParameters": dict(job.hyperparameters),
        "Tags": profile.tag_list(),
        **_definition(job, role_arn=role_arn),
    }


def tuning_request(
    job: Job,
    *,
    role_arn: str,
    profile: Profile,
    description: Mapping[str, Any],
    trials: int,
    parallel: int,
    strategy: str = "Bayesian",
) -> dict[str, Any]:
    """CreateHyperParameterTuningJob over the ranges that the image ships."""
    ranges = {kind: _untuned(entries, job.hyperparameters) for kind, entries in description["parameter_ranges"].items()}
    _check_tuning(job, ranges, strategy=strategy, trials=trials, parallel=parallel)
    definition = _definition(job, role_arn=role_arn)
    definition["AlgorithmSpecification"]["MetricDefinitions"] = description["metric_definitions"]
    return {
        "HyperParameterTuningJobName": job.name,
        "HyperParameterTuningJobConfig": {
            "Strategy": strategy,
            "HyperParameterTuningJobObjective": description["objective"],
            "ResourceLimits": {"MaxNumberOfTrainingJobs": trials, "MaxParallelTrainingJobs": parallel},
            "ParameterRanges": ranges,
            # Hyperband stops trials itself and allows no second hand (CreateHyperParameterTuningJob).
            "TrainingJobEarlyStoppingType": "Off" if strategy == "Hyperband" else "Auto",
        },
        "TrainingJobDefinition": {"StaticHyperParameters": dict(job.hyperparameters), **definition},
        "Tags": profile.tag_list(),
    }


def _definition(job: Job, *, role_arn: str) -> dict[str, Any]:
    """What a training job and the trials of a tuning job have in common."""
    settings = job.settings
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_s}
    if settings.spot:
        stopping["MaxWaitTimeInSeconds"] = job.max_runtime_s * _SPOT_WAIT_FACTOR
    resources: dict[str, Any] = {
        "InstanceType": settings.instance_type,
        "InstanceCount": settings.instances,
        "VolumeSizeInGB": settings.volume_gb,
    }
    if job.warm_minutes:
        resources["KeepAlivePeriodInSeconds"] = job.warm_minutes * 60
    definition: dict[str, Any] = {
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": metric_definitions(),
        },
        "RoleArn": role_arn,
        "InputDataConfig": [_channel(name, uri) for name, uri in job.channels.items()],
        "OutputDataConfig": {"S3OutputPath": job.output},
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": settings.spot,
        "EnableNetworkIsolation": settings.isolated,
        # Gradients between hosts are the data's children.
        "EnableInterContainerTrafficEncryption": settings.instances > 1,
        "CheckpointConfig": {"S3Uri": job.checkpoints},
    }
    if settings.subnets:
        definition["VpcConfig"] = {
            "Subnets": list(settings.subnets),
            "SecurityGroupIds": list(settings.security_groups),
        }
    return definition


def _channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def _untuned(entries: list[dict[str, Any]], fixed: Mapping[str, str]) -> list[dict[str, Any]]:
    """A value that is given with --set is not searched for."""
    return [entry for entry in entries if entry["Name"] not in fixed]


def _check_tuning(job: Job, ranges: Mapping[str, list[Any]], *, strategy: str, trials: int, parallel: int) -> None:
    problems = {
        f"strategy '{strategy}' is none of {', '.join(STRATEGIES)}": strategy in STRATEGIES,
        f"{parallel} trials at a time do not fit {trials} trials": 1 <= parallel <= trials,
        f"the name '{job.name}' is longer than the 32 characters of a tuning job": len(job.name) <= 32,
        "nothing is left to search: every range of the image is fixed with --set": any(ranges.values()),
        "Grid searches lists of values only; this image has ranges of numbers: take Bayesian, or --set them": (
            strategy != "Grid" or not (ranges["IntegerParameterRanges"] or ranges["ContinuousParameterRanges"])
        ),
    }
    if wrong := [problem for problem, holds in problems.items() if not holds]:
        raise DeployError("; ".join(wrong))


def check_job(job: Job) -> None:
    """What CreateTrainingJob would refuse, or quietly make useless. Raises DeployError with all of it."""
    settings = job.settings
    problems = {
        f"the name '{job.name}' must be at most 63 letters, digits and hyphens, and begin and end with no hyphen": (
            bool(_NAME.fullmatch(job.name))
        ),
        "a warm pool keeps instances on demand; it cannot be had with spot: --no-spot": (
            not (job.warm_minutes and settings.spot)
        ),
        f"a warm pool lives at most 360 minutes, not {job.warm_minutes}": 0 <= job.warm_minutes <= 360,
        f"{settings.instances} instances: at least 1": settings.instances >= 1,
        f"{settings.max_hours} hours: more than 0, at most 672 (28 days)": 0 < settings.max_hours <= 672,
        f"instance type '{settings.instance_type}' must start with ml.": settings.instance_type.startswith("ml."),
        "there is no channel 'training'": "training" in job.channels,
    }
    if wrong := [problem for problem, holds in problems.items() if not holds]:
        raise DeployError("; ".join(wrong))
