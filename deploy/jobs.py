"""Jobs that run and end: their state, their best metric so far, their log, and how to stop them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from container.contract import METRICS, VALIDATION_BEST_ACCURACY
from deploy.aws import Aws
from deploy.errors import DeployError

TRAINING_LOGS = "/aws/sagemaker/TrainingJobs"
_ENDED = ("Completed", "Failed", "Stopped", "terminated", "gone")
_ABSENT = ("ValidationException", "ResourceNotFound")


@dataclass(frozen=True)
class Status:
    """A job as AWS describes it; `kind` is training, tuning or ec2."""

    kind: str
    name: str
    state: str
    detail: str = ""
    failure: str = ""
    artifact: str = ""
    seconds: int = 0

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


@dataclass(frozen=True)
class LogSource:
    """The streams of one log group whose names start with `prefix`."""

    group: str
    prefix: str


def status(aws: Aws, name: str) -> Status:
    """Whatever job has this name. Raises DeployError where there is none."""
    for look in (_training_status, _tuning_status, _ec2_status):
        if found := look(aws, name):
            return found
    raise DeployError(f"no training job, tuning job or EC2 instance of {aws.profile.region} is called '{name}'")


def log_source(aws: Aws, found: Status) -> LogSource:
    if found.kind == "ec2":
        return LogSource(f"/{aws.profile.name}/{aws.profile.stage}/ec2", found.name)
    # A job's streams are JOB/algo-N-TIME; a tuning job's trials are JOB-NNN-HASH/algo-N-TIME.
    return LogSource(TRAINING_LOGS, found.name + ("/" if found.kind == "training" else "-"))


def lines(aws: Aws, source: LogSource, *, follow_until: Callable[[], bool] | None = None) -> Iterator[tuple[str, str]]:
    """(stream, line) of all streams, oldest first; with `follow_until`, new ones until it returns true."""
    tokens: dict[str, str] = {}
    while True:
        # Asked before reading: what was written before the end is still read after it.
        ended = follow_until is None or follow_until()
        for event, stream in sorted(_new_events(aws, source, tokens), key=lambda pair: pair[0]["timestamp"]):
            yield stream, event["message"].rstrip("\n")
        if ended:
            return
        aws.sleep(3)


def last_lines(aws: Aws, source: LogSource, *, count: int = 20) -> list[str]:
    """The end of a log, for error messages; empty where there is no log."""
    return [line for _, line in lines(aws, source)][-count:]


def best_metric(aws: Aws, source: LogSource) -> dict[str, float]:
    """Every metric's best value so far, read from the log as SageMaker reads it."""
    best: dict[str, float] = {}
    for _, line in lines(aws, source):
        for metric in METRICS:
            if found := re.search(metric.regex, line):
                better = min if metric.name.endswith("loss") else max
                best[metric.name] = better(best.get(metric.name, float(found[1])), float(found[1]))
    return best


def headline(best: dict[str, float]) -> str:
    """The figure that a model is kept for, in words; empty where none was printed yet."""
    value = best.get(VALIDATION_BEST_ACCURACY.name)
    return "" if value is None else f"{VALIDATION_BEST_ACCURACY.name} {value:.4f}"


def stop(aws: Aws, found: Status) -> None:
    """Ask it to end: SIGTERM and two minutes on SageMaker; an EC2 instance is terminated."""
    if found.kind == "training":
        aws.call("sagemaker", "stop_training_job", TrainingJobName=found.name)
    elif found.kind == "tuning":
        aws.call("sagemaker", "stop_hyper_parameter_tuning_job", HyperParameterTuningJobName=found.name)
    else:
        aws.call("ec2", "terminate_instances", InstanceIds=[found.detail])


def _training_status(aws: Aws, name: str) -> Status | None:
    job = aws.found("sagemaker", "describe_training_job", *_ABSENT, TrainingJobName=name)
    if job is None:
        return None
    return Status(
        kind="training",
        name=name,
        state=job["TrainingJobStatus"],
        detail=job.get("SecondaryStatus", ""),
        failure=job.get("FailureReason", ""),
        artifact=job.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
        seconds=job.get("BillableTimeInSeconds", 0),
    )


def _tuning_status(aws: Aws, name: str) -> Status | None:
    if len(name) > 32:
        return None
    job = aws.found("sagemaker", "describe_hyper_parameter_tuning_job", *_ABSENT, HyperParameterTuningJobName=name)
    if job is None:
        return None
    return Status(
        kind="tuning",
        name=name,
        state=job["HyperParameterTuningJobStatus"],
        detail=_tuning_detail(job),
        failure=job.get("FailureReason", ""),
    )


def _tuning_detail(job: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in job.get("TrainingJobStatusCounters", {}).items() if count)
    best = job.get("BestTrainingJob")
    if not best or "FinalHyperParameterTuningJobObjectiveMetric" not in best:
        return counts
    metric = best["FinalHyperParameterTuningJobObjectiveMetric"]
    tuned = ", ".join(f"{key}={value}" for key, value in best.get("TunedHyperParameters", {}).items())
    return f"{counts}; best {metric['MetricName']} {metric['Value']:.4f} by {best['TrainingJobName']} ({tuned})"


def _ec2_status(aws: Aws, name: str) -> Status | None:
    filters = [{"Name": "tag:job", "Values": [name]}, {"Name": "tag:project", "Values": [aws.profile.name]}]
    for reservation in aws.pages("ec2", "describe_instances", "Reservations", Filters=filters):
        for instance in reservation["Instances"]:
            reason = instance.get("StateTransitionReason", "")
            return Status("ec2", name, instance["State"]["Name"], detail=instance["InstanceId"], failure=reason)
    return None


def _new_events(aws: Aws, source: LogSource, tokens: dict[str, str]) -> list[tuple[dict[str, Any], str]]:
    """What was logged since the last call; `tokens` remembers where each stream was read to."""
    events = []
    for stream in _streams(aws, source):
        while True:
            place = {"nextToken": tokens[stream]} if stream in tokens else {"startFromHead": True}
            answer = aws.call("logs", "get_log_events", logGroupName=source.group, logStreamName=stream, **place)
            events += [(event, stream) for event in answer["events"]]
            # The same token twice means that the end of the stream was reached (GetLogEvents).
            if answer["nextForwardToken"] == tokens.get(stream):
                break
            tokens[stream] = answer["nextForwardToken"]
    return events


def _streams(aws: Aws, source: LogSource) -> list[str]:
    request = {"logGroupName": source.group}
    if source.prefix:
        request["logStreamNamePrefix"] = source.prefix
    first = aws.found("logs", "describe_log_streams", "ResourceNotFoundException", **request)
    if first is None:
        return []
    return [stream["logStreamName"] for stream in aws.pages("logs", "describe_log_streams", "logStreams", **request)]
