"""`destroy --all`: the end of everything that a stage has in AWS, and the proof that nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from deploy import ec2, inventory, jobs, notifications, stacks
from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.profile import STAGES

Say = Callable[[str], None]


def require_repository_unused(aws: Aws) -> None:
    """Raise where another stage of this account still runs what this stage's repository holds."""
    profile = aws.profile
    others = [f"{profile.name}-{stage}-app" for stage in STAGES if stage != profile.stage]
    if profile.owns_repository and (users := [name for name in others if stacks.exists(aws, name)]):
        raise DeployError(
            f"repository '{profile.repository}' belongs to this stage, and {', '.join(users)} runs its image: "
            "destroy that first, or let another stage own the repository (owns_repository in the profile)"
        )


def destroy(aws: Aws, *, say: Say) -> None:
    """End it all, in the order in which one thing needs another. Safe to repeat after an interruption."""
    _stop_jobs(aws, say)
    _end_instances(aws, say)
    remove_notifications(aws, say=say)
    stacks.delete(aws, aws.profile.app_stack, say=say)
    stacks.delete(aws, aws.profile.base_stack, say=say)
    for group in ec2.security_groups(aws):
        aws.call("ec2", "delete_security_group", GroupId=group)
        say(f"deleted security group {group}")
    _delete_data(aws, say)
    for repository in inventory.repositories(aws):
        aws.call("ecr", "delete_repository", repositoryName=repository, force=True)
        say(f"deleted repository {repository} with its images")
    for name in list(inventory.log_groups(aws)):
        aws.call("logs", "delete_log_group", logGroupName=name)
        say(f"deleted log group {name}")


def remove_notifications(aws: Aws, *, say: Say) -> None:
    """Buckets that outlive the function are not to call it."""
    for bucket in notifications.notifying(aws):
        notifications.put(aws, bucket, None)
        say(f"bucket {bucket} notifies the function no longer")


def prove_gone(aws: Aws, *, wait_s: float = 300) -> None:
    """Raise DeployError with what is left; jobs that were asked to stop get time to do so."""
    deadline = aws.clock() + wait_s
    while left := inventory.take(aws):
        if aws.clock() > deadline:
            names = "\n".join(f"  - {one.kind} {one.name}" for one in left)
            raise DeployError(
                f"this is left in account {aws.account}, region {aws.profile.region}:\n{names}\n"
                "What to do: `destroy --all` again; what stays then and is yours, delete in the console."
            )
        aws.sleep(10)


def _stop_jobs(aws: Aws, say: Say) -> None:
    for name in list(inventory.training_jobs(aws)):
        aws.call("sagemaker", "stop_training_job", TrainingJobName=name)
        say(f"stopping training job {name}")
    for name in list(inventory.tuning_jobs(aws)):
        aws.call("sagemaker", "stop_hyper_parameter_tuning_job", HyperParameterTuningJobName=name)
        say(f"stopping tuning job {name}")
    for name in list(inventory.warm_pools(aws)):
        jobs.stop(aws, jobs.status(aws, name))
        say(f"letting the warm instances of {name} go")
    # They save their model before they end, into the bucket that is emptied next.
    _wait_until_none(aws, lambda: [*inventory.training_jobs(aws), *inventory.tuning_jobs(aws)])


def _end_instances(aws: Aws, say: Say) -> None:
    if not (ids := list(inventory.instances(aws))):
        return
    aws.call("ec2", "terminate_instances", InstanceIds=ids)
    say(f"terminating {', '.join(ids)}")
    # Their security group cannot go before them.
    _wait_until_none(aws, lambda: list(inventory.instances(aws)))


def _wait_until_none(aws: Aws, look: Callable[[], list[str]]) -> None:
    """For five minutes at most; what is left then is told by `prove_gone`."""
    deadline = aws.clock() + 300
    while look() and aws.clock() < deadline:
        aws.sleep(5)


def _delete_data(aws: Aws, say: Say) -> None:
    """The bucket, and before it what can only be found with its help: the logs of its jobs."""
    for stream in list(inventory.job_logs(aws)):
        aws.call("logs", "delete_log_stream", logGroupName=jobs.TRAINING_LOGS, logStreamName=stream)
        say(f"deleted log {stream}")
    for bucket in inventory.buckets(aws):
        _empty(aws, bucket, say)
        aws.call("s3", "delete_bucket", Bucket=bucket)
        say(f"deleted bucket {bucket}")


def _empty(aws: Aws, bucket: str, say: Say) -> None:
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


def _thousands(entries: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == 1000:
            yield batch
            batch = []
    if batch:
        yield batch
