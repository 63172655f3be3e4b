"""`destroy --all`: what a stage has in AWS, its end, and the proof that nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deploy import ec2, stacks
from deploy.aws import Aws
from deploy.errors import DeployError

_RUNNING = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True)
class Left:
    """One thing that exists: its kind and its name."""

    kind: str
    name: str


def inventory(aws: Aws) -> list[Left]:
    """Everything of this stage that exists, asked of each service by itself and not of our stacks' word."""
    looks = {
        "training job": _jobs,
        "tuning job": _tunings,
        "EC2 instance": _instances,
        "stack": _stacks,
        "endpoint": _endpoints,
        "function": _functions,
        "security group": lambda aws: filter(None, [ec2.find_security_group(aws)]),
        "bucket": _buckets,
        "repository": _repositories,
        "log group": _log_groups,
        "role": _roles,
    }
    return [Left(kind, name) for kind, look in looks.items() for name in look(aws)]


def destroy(aws: Aws, *, say: Callable[[str], None]) -> None:
    """End it all, in the order in which one thing needs another. Safe to repeat after an interruption."""
    for name in _jobs(aws):
        aws.call("sagemaker", "stop_training_job", TrainingJobName=name)
        say(f"stopping training job {name}")
    for name in _tunings(aws):
        aws.call("sagemaker", "stop_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)
        say(f"stopping tuning job {name}")
    _end_instances(aws, say)
    stacks.delete(aws, aws.profile.app_stack, say=say)
    stacks.delete(aws, aws.profile.base_stack, say=say)
    if group := ec2.find_security_group(aws):
        aws.call("ec2", "delete_security_group", GroupId=group)
        say(f"deleted security group {group}")
    for bucket in _buckets(aws):
        _empty(aws, bucket, say)
        aws.call("s3", "delete_bucket", Bucket=bucket)
        say(f"deleted bucket {bucket}")
    for repository in _repositories(aws):
        aws.call("ecr", "delete_repository", repositoryName=repository, force=True)
        say(f"deleted repository {repository} with its images")
    for group in list(_log_groups(aws)):
        aws.call("logs", "delete_log_group", logGroupName=group)
        say(f"deleted log group {group}")


def prove_gone(aws: Aws, *, wait_s: float = 300) -> None:
    """Raise DeployError with what is left; jobs that were asked to stop get time to do so."""
    deadline = aws.clock() + wait_s
    while left := inventory(aws):
        if aws.clock() > deadline:
            names = "\n".join(f"  - {one.kind} {one.name}" for one in left)
            raise DeployError(f"this is left in account {aws.account}, region {aws.profile.region}:\n{names}")
        aws.sleep(10)


def _end_instances(aws: Aws, say: Callable[[str], None]) -> None:
    if not (ids := list(_instances(aws))):
        return
    aws.call("ec2", "terminate_instances", InstanceIds=ids)
    say(f"terminating {', '.join(ids)}")
    deadline = aws.clock() + 300
    while list(_instances(aws)) and aws.clock() < deadline:
        aws.sleep(5)  # their security group cannot go before them


def _empty(aws: Aws, bucket: str, say: Callable[[str], None]) -> None:
    """Every version of every object: a bucket with old versions cannot be deleted."""
    pages = ("Versions", "DeleteMarkers")
    entries = (
        {"Key": one["Key"], "VersionId": one["VersionId"]}
        for member in pages
        for one in aws.pages("s3", "list_object_versions", member, Bucket=bucket)
    )
    count = 0
    for batch in _thousands(entries):
        answer = aws.call("s3", "delete_objects", Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        if errors := answer.get("Errors"):
            raise DeployError(f"emptying bucket {bucket}: {errors[0]['Key']}: {errors[0]['Message']}")
        count += len(batch)
    say(f"deleted {count} objects of {bucket}")


def _jobs(aws: Aws) -> Iterator[str]:
    yield from _named(aws, "list_training_jobs", "TrainingJobSummaries", "TrainingJobName")


def _tunings(aws: Aws) -> Iterator[str]:
    yield from _named(
        aws, "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJobSummaries", "HyperParameterTuningJobName"
    )


def _named(aws: Aws, operation: str, member: str, key: str) -> Iterator[str]:
    """Jobs that run. Ended ones are records that cost nothing and cannot be deleted."""
    prefix = f"{aws.profile.prefix}-"
    for state in ("InProgress", "Stopping"):
        for entry in aws.pages("sagemaker", operation, member, NameContains=prefix, StatusEquals=state):
            if entry[key].startswith(prefix):
                yield entry[key]


def _instances(aws: Aws) -> Iterator[str]:
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in aws.profile.tags.items()]
    filters.append({"Name": "instance-state-name", "Values": [*_RUNNING, "shutting-down"]})
    for reservation in aws.pages("ec2", "describe_instances", "Reservations", Filters=filters):
        yield from (instance["InstanceId"] for instance in reservation["Instances"])


def _stacks(aws: Aws) -> Iterator[str]:
    for name in (aws.profile.app_stack, aws.profile.base_stack):
        if stacks.describe(aws, name):
            yield name


def _endpoints(aws: Aws) -> Iterator[str]:
    for entry in aws.pages("sagemaker", "list_endpoints", "Endpoints", NameContains=aws.profile.prefix):
        if entry["EndpointName"] == aws.profile.prefix:
            yield entry["EndpointName"]


def _functions(aws: Aws) -> Iterator[str]:
    for entry in aws.pages("lambda", "list_functions", "Functions"):
        if entry["FunctionName"].startswith(f"{aws.profile.prefix}-"):
            yield entry["FunctionName"]


def _buckets(aws: Aws) -> list[str]:
    return [one["Name"] for one in aws.call("s3", "list_buckets")["Buckets"] if one["Name"] == aws.bucket]


def _repositories(aws: Aws) -> list[str]:
    """The repository, where this stage owns it."""
    if not aws.profile.owns_repository:
        return []
    name = aws.profile.repository
    found = aws.found("ecr", "describe_repositories", "RepositoryNotFoundException", repositoryNames=[name])
    return [name] if found else []


def _log_groups(aws: Aws) -> Iterator[str]:
    """The groups of our names. Training jobs write into one group of the whole account, which is not ours."""
    profile = aws.profile
    for prefix in (
        f"/aws/sagemaker/Endpoints/{profile.prefix}",
        f"/aws/lambda/{profile.prefix}-",
        f"/{profile.name}/{profile.stage}/",
    ):
        for group in aws.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=prefix):
            yield group["logGroupName"]


def _roles(aws: Aws) -> Iterator[str]:
    for entry in aws.pages("iam", "list_roles", "Roles"):
        if entry["RoleName"].startswith(f"{aws.profile.prefix}-"):
            yield entry["RoleName"]


def _thousands(entries: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == 1000:
            yield batch
            batch = []
    if batch:
        yield batch
