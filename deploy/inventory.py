"""Everything of a stage that exists in AWS, asked of each service by itself and not of our stacks' word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from deploy import ec2, jobs, notifications, stacks
from deploy.aws import Aws

_LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]


@dataclass(frozen=True)
class Left:
    """One thing that exists: its kind and its name."""

    kind: str
    name: str


def take(aws: Aws) -> list[Left]:
    """All of it, in the order in which one thing needs another."""
    return [Left(kind, name) for kind, look in LOOKS.items() for name in look(aws)]


def training_jobs(aws: Aws) -> Iterator[str]:
    """Jobs that run. Ended ones are records that cost nothing and cannot be deleted."""
    for state in ("InProgress", "Stopping"):
        pages = aws.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", StatusEquals=state)
        yield from (job["TrainingJobName"] for job in pages if _ours(aws, job["TrainingJobArn"]))


def tuning_jobs(aws: Aws) -> Iterator[str]:
    operation, name = "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJob"
    for state in ("InProgress", "Stopping"):
        pages = aws.pages("sagemaker", operation, f"{name}Summaries", StatusEquals=state)
        yield from (job[f"{name}Name"] for job in pages if _ours(aws, job[f"{name}Arn"]))


def warm_pools(aws: Aws) -> Iterator[str]:
    """Ended jobs whose instances wait for another one, and are billed for it."""
    pages = aws.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", WarmPoolStatusEquals="Available")
    for job in pages:
        if job.get("WarmPoolStatus", {}).get("Status") == "Available" and _ours(aws, job["TrainingJobArn"]):
            yield job["TrainingJobName"]


def instances(aws: Aws) -> Iterator[str]:
    filters = [*_tag_filters(aws), {"Name": "instance-state-name", "Values": _LIVING}]
    for reservation in aws.pages("ec2", "describe_instances", "Reservations", Filters=filters):
        yield from (instance["InstanceId"] for instance in reservation["Instances"])


def buckets(aws: Aws) -> list[str]:
    return [one["Name"] for one in aws.call("s3", "list_buckets")["Buckets"] if one["Name"] == aws.bucket]


def repositories(aws: Aws) -> list[str]:
    """The repository, where this stage owns it."""
    if not aws.profile.owns_repository:
        return []
    name = aws.profile.repository
    found = aws.found("ecr", "describe_repositories", "RepositoryNotFoundException", repositoryNames=[name])
    return [name] if found else []


def log_groups(aws: Aws) -> Iterator[str]:
    """The groups of our names. They are deleted: a longer name, as `kennel-dev2`, is somebody else's."""
    profile = aws.profile
    ours = (f"/aws/sagemaker/Endpoints/{profile.prefix}", f"/aws/lambda/{aws.function_name}", ec2.log_group(profile))
    for name in ours:
        groups = aws.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=name)
        yield from (name for group in groups if group["logGroupName"] == name)


def job_logs(aws: Aws) -> Iterator[str]:
    """Our jobs' streams in the log group that all of an account's training jobs share.

    SageMaker keeps them for ever. Whose a stream is, is known from the folders that jobs leave in the bucket, so they
    can be found only as long as the bucket is there.
    """
    for name in sorted(_jobs_of_bucket(aws)):
        yield from jobs.streams(aws, jobs.LogSource(jobs.TRAINING_LOGS, f"{name}/"))


def _jobs_of_bucket(aws: Aws) -> set[str]:
    names: set[str] = set()
    for folder in ("jobs/", "checkpoints/") if buckets(aws) else ():
        pages = aws.pages("s3", "list_objects_v2", "CommonPrefixes", Bucket=aws.bucket, Prefix=folder, Delimiter="/")
        names |= {entry["Prefix"].removeprefix(folder).rstrip("/") for entry in pages}
    return names


def _stacks(aws: Aws) -> Iterator[str]:
    return (name for name in (aws.profile.app_stack, aws.profile.base_stack) if stacks.exists(aws, name))


def _security_groups(aws: Aws) -> Iterable[str]:
    return ec2.security_groups(aws)


def _volumes(aws: Aws) -> Iterator[str]:
    for volume in aws.pages("ec2", "describe_volumes", "Volumes", Filters=_tag_filters(aws)):
        yield volume["VolumeId"]


def _endpoints(aws: Aws) -> Iterator[str]:
    for entry in aws.pages("sagemaker", "list_endpoints", "Endpoints", NameContains=aws.profile.prefix):
        if entry["EndpointName"] == aws.profile.prefix:
            yield entry["EndpointName"]


def _endpoint_configs(aws: Aws) -> Iterator[str]:
    """CloudFormation names them after their place in the template."""
    pages = aws.pages("sagemaker", "list_endpoint_configs", "EndpointConfigs", NameContains="EndpointConfig-")
    return (one["EndpointConfigName"] for one in pages if _ours(aws, one["EndpointConfigArn"]))


def _models(aws: Aws) -> Iterator[str]:
    pages = aws.pages("sagemaker", "list_models", "Models", NameContains="Model-")
    return (one["ModelName"] for one in pages if _ours(aws, one["ModelArn"]))


def _scaling(aws: Aws) -> Iterator[str]:
    pages = aws.pages(
        "application-autoscaling",
        "describe_scalable_targets",
        "ScalableTargets",
        ServiceNamespace="sagemaker",
        ResourceIds=[f"endpoint/{aws.profile.prefix}/variant/all"],
    )
    return (one["ResourceId"] for one in pages)


def _functions(aws: Aws) -> Iterator[str]:
    names = (one["FunctionName"] for one in aws.pages("lambda", "list_functions", "Functions"))
    return _with_prefix(aws, names)


def _queues(aws: Aws) -> Iterator[str]:
    return aws.pages("sqs", "list_queues", "QueueUrls", QueueNamePrefix=f"{aws.profile.prefix}-")


def _topics(aws: Aws) -> Iterator[str]:
    names = (one["TopicArn"].rsplit(":", 1)[-1] for one in aws.pages("sns", "list_topics", "Topics"))
    return _with_prefix(aws, names)


def _alarms(aws: Aws) -> Iterator[str]:
    """Ours, and those that scaling made for itself."""
    endpoint = f"endpoint/{aws.profile.prefix}/"
    for prefix in (f"{aws.profile.prefix}-", f"TargetTracking-{endpoint}"):
        for alarm in aws.pages("cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=prefix):
            yield alarm["AlarmName"]


def _dashboards(aws: Aws) -> Iterator[str]:
    prefix = aws.profile.prefix
    pages = aws.pages("cloudwatch", "list_dashboards", "DashboardEntries", DashboardNamePrefix=prefix)
    return (one["DashboardName"] for one in pages if one["DashboardName"] == prefix)


def _roles(aws: Aws) -> Iterator[str]:
    return _with_prefix(aws, (one["RoleName"] for one in aws.pages("iam", "list_roles", "Roles")))


def _policies(aws: Aws) -> Iterator[str]:
    names = (one["PolicyName"] for one in aws.pages("iam", "list_policies", "Policies", Scope="Local"))
    return _with_prefix(aws, names)


def _instance_profiles(aws: Aws) -> Iterator[str]:
    names = (one["InstanceProfileName"] for one in aws.pages("iam", "list_instance_profiles", "InstanceProfiles"))
    return _with_prefix(aws, names)


def _with_prefix(aws: Aws, names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if name.startswith(f"{aws.profile.prefix}-"))


def _ours(aws: Aws, arn: str) -> bool:
    """By its tags: a job has the name that its user gave it."""
    tags = {tag["Key"]: tag["Value"] for tag in aws.pages("sagemaker", "list_tags", "Tags", ResourceArn=arn)}
    return aws.profile.tags.items() <= tags.items()


def _tag_filters(aws: Aws) -> list[dict[str, object]]:
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in aws.profile.tags.items()]


LOOKS: dict[str, Callable[[Aws], Iterable[str]]] = {
    "training job": training_jobs,
    "tuning job": tuning_jobs,
    "warm pool of job": warm_pools,
    "EC2 instance": instances,
    "EC2 volume": _volumes,
    "notification of bucket": notifications.notifying,
    "stack": _stacks,
    "endpoint": _endpoints,
    "endpoint configuration": _endpoint_configs,
    "model": _models,
    "scaling of": _scaling,
    "function": _functions,
    "queue": _queues,
    "topic": _topics,
    "alarm": _alarms,
    "dashboard": _dashboards,
    "security group": _security_groups,
    "log of job": job_logs,
    "bucket": buckets,
    "repository": repositories,
    "log group": log_groups,
    "role": _roles,
    "policy": _policies,
    "instance profile": _instance_profiles,
}
