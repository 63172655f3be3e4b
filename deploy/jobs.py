"""Jobs that run and end: their state, their best metric so far, their log, and how to stop them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from container.contract import METRICS
from deploy import ec2
from deploy.aws import Aws
from deploy.errors import DeployError

TRAINING_LOGS = "/aws/sagemaker/TrainingJobs"
# The end of a log is looked for in so many streams, and in so many pages of each.
_TAIL_STREAMS = 5
_TAIL_PAGES = 5
_ENDED = ("Completed", "Failed", "Stopped", "terminated")
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
    warm: bool = False  # ended, but its instances wait for the next job, and are billed

    @property
    def ended(self) -> bool:
        return self.state in _ENDED

    @property
    def failed(self) -> bool:
        """It ended, and not as it should have: an EC2 instance that is gone and left nothing failed too."""
        return self.state in ("Failed", "terminated")


@dataclass(frozen=True)
class LogSource:
    """The streams of one log group whose names start with `prefix`."""

    group: str
    prefix: str


def find(aws: Aws, name: str) -> Status | None:
    """Whatever job has this name, or nothing."""
    looks = (_training_status, _tuning_status, _ec2_status)
    return next((found for look in looks if (found := look(aws, name))), None)


def status(aws: Aws, name: str) -> Status:
    """Whatever job has this name. Raises DeployError where there is none."""
    found = find(aws, name)
    if found is None:
        raise DeployError(f"no training job, tuning job or EC2 instance of {aws.profile.region} is called '{name}'")
    return found


def require_free_name(aws: Aws, name: str) -> None:
    """Raise where a job has this name: AWS would refuse it only after the data was sent."""
    found = find(aws, name)
    if found is not None:
        raise DeployError(
            f"the name '{name}' is in use: {found.kind} {name} is {found.state}; choose another with --name, "
            f"or look at it: `status {name}`"
        )


def log_source(aws: Aws, found: Status) -> LogSource:
    if found.kind == "ec2":
        return LogSource(ec2.log_group(aws.profile), f"{found.name}/")
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
    """The end of a log, for error messages; empty where there is no log.

    Of the newest streams alone: what does not come into service is the newest instances, and the older ones may have
    written for months.
    """
    newest = sorted(_streams(aws, source), key=lambda stream: stream["creationTime"])[-_TAIL_STREAMS:]
    events = [event for stream in newest for event in _tail(aws, source.group, stream["logStreamName"], count)]
    in_order = sorted(events, key=lambda event: event["timestamp"])
    return [event["message"].rstrip("\n") for event in in_order[-count:]]


def best_metric(aws: Aws, source: LogSource) -> dict[str, float]:
    """Every metric's best value so far, read from the log as SageMaker reads it."""
    best: dict[str, float] = {}
    for _, line in lines(aws, source):
        for metric in METRICS:
            if found := re.search(metric.regex, line):
                better = min if metric.name.endswith("loss") else max
                best[metric.name] = better(best.get(metric.name, float(found[1])), float(found[1]))
    return best


def stop(aws: Aws, found: Status) -> None:
    """Ask it to end: SIGTERM and two minutes on SageMaker; an EC2 instance is terminated, warm ones are let go."""
    if found.warm:
        keep = {"KeepAlivePeriodInSeconds": 0}
        aws.call("sagemaker", "update_training_job", TrainingJobName=found.name, ResourceConfig=keep)
    elif found.kind == "training":
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
        detail=job.get("SecondaryStatus", "").replace(job["TrainingJobStatus"], ""),  # they end on the same word
        failure=job.get("FailureReason", ""),
        artifact=job.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
        seconds=job.get("BillableTimeInSeconds", 0),
        warm=job.get("WarmPoolStatus", {}).get("Status") == "Available",
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
    """An instance while it lives; then what it left in the bucket, for EC2 forgets an instance within the hour."""
    instance = _instance(aws, name)
    if instance is not None and instance["State"]["Name"] != "terminated":
        return Status("ec2", name, instance["State"]["Name"], detail=instance["InstanceId"])
    output = f"jobs/{name}/output/"
    entries = aws.pages("s3", "list_objects_v2", "Contents", Bucket=aws.bucket, Prefix=output)
    left = {entry["Key"].removeprefix(output) for entry in entries}
    if "failure" in left:
        body = aws.call("s3", "get_object", Bucket=aws.bucket, Key=f"{output}failure")["Body"].read()
        return Status("ec2", name, "Failed", failure=body.decode(errors="replace"))
    if "model.tar.gz" in left:
        return Status("ec2", name, "Completed", artifact=f"s3://{aws.bucket}/{output}model.tar.gz")
    if instance is not None:
        reason = instance.get("StateTransitionReason") or "EC2 gave no reason"
        return Status("ec2", name, "terminated", failure=f"it left neither a model nor a failure; {reason}")
    return None


def _instance(aws: Aws, name: str) -> dict[str, Any] | None:
    """The newest instance of this job."""
    filters = [{"Name": "tag:job", "Values": [name]}, {"Name": "tag:project", "Values": [aws.profile.name]}]
    reservations = aws.pages("ec2", "describe_instances", "Reservations", Filters=filters)
    found = [instance for reservation in reservations for instance in reservation["Instances"]]
    return max(found, key=lambda instance: instance["LaunchTime"], default=None)


def _tail(aws: Aws, group: str, stream: str, count: int) -> list[dict[str, Any]]:
    """A stream's last events, read backwards: a page may hold fewer than asked for, even none (GetLogEvents)."""
    events: list[dict[str, Any]] = []
    place: dict[str, str] = {}
    for _ in range(_TAIL_PAGES):
        answer = aws.call("logs", "get_log_events", logGroupName=group, logStreamName=stream, limit=count, **place)
        events = [*answer["events"], *events]
        before = {"nextToken": answer["nextBackwardToken"]}
        if len(events) >= count or before == place:
            break
        place = before
    return events


def _new_events(aws: Aws, source: LogSource, tokens: dict[str, str]) -> list[tuple[dict[str, Any], str]]:
    """What was logged since the last call; `tokens` remembers where each stream was read to."""
    events = []
    for stream in streams(aws, source):
        while True:
            # A token of this direction needs startFromHead too (GetLogEvents).
            place = {"startFromHead": True, **({"nextToken": tokens[stream]} if stream in tokens else {})}
            answer = aws.call("logs", "get_log_events", logGroupName=source.group, logStreamName=stream, **place)
            events += [(event, stream) for event in answer["events"]]
            # The same token twice means that the end of the stream was reached (GetLogEvents).
            if answer["nextForwardToken"] == tokens.get(stream):
                break
            tokens[stream] = answer["nextForwardToken"]
    return events


def streams(aws: Aws, source: LogSource) -> list[str]:
    """The names of its streams; none where there is no such group."""
    return [stream["logStreamName"] for stream in _streams(aws, source)]


def _streams(aws: Aws, source: LogSource) -> list[dict[str, Any]]:
    request = {"logGroupName": source.group}
    if source.prefix:
        request["logStreamNamePrefix"] = source.prefix
    first = aws.found("logs", "describe_log_streams", "ResourceNotFoundException", **request)
    if first is None:
        return []
    return list(aws.pages("logs", "describe_log_streams", "logStreams", **request))
