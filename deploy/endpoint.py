"""The app stack's parameters, the endpoint's state, and calls to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from deploy import jobs, stacks
from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.pricing import endpoint_month_words, load_prices, provisioned_month
from deploy.profile import Profile

VARIANT = "all"
# AWS's rule for SageMakerVariantInvocationsPerInstance: max requests a second x safety factor x 60 seconds.
SAFETY_FACTOR = 0.5
_OF_FUNCTION = ("Name", "Stage", "CodeKey", "Variant", "AllowedUrlHosts", "AllowedBuckets", "Tracing")


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to stand: an image by digest, a model in S3, the function's zip by sha256."""

    image: str
    model: str
    code_key: str = ""


def scaling_target(max_requests_per_s: float) -> int:
    """Invocations a minute an instance for target tracking, from what a load test found one instance to hold."""
    return max(1, int(max_requests_per_s * SAFETY_FACTOR * 60))


def app_stack(aws: Aws, release: Release) -> stacks.Stack:
    """The app stack of this profile with this release."""
    return stacks.Stack(aws.profile.app_stack, stacks.read_template("app"), app_parameters(aws, release))


def app_parameters(aws: Aws, release: Release) -> dict[str, str]:
    endpoint, function = aws.profile.endpoint, aws.profile.function
    values: dict[str, Any] = {
        "Name": aws.profile.name,
        "Stage": aws.profile.stage,
        "Bucket": aws.bucket,
        "EndpointRoleArn": aws.role_arn("endpoint"),
        "ImageUri": release.image,
        "ModelDataUrl": release.model,
        "Variant": endpoint.variant,
        "InstanceType": endpoint.instance_type,
        "MinInstances": endpoint.min_instances,
        "MaxInstances": endpoint.max_instances,
        "ScalingTarget": endpoint.scaling_target,
        "ScaleOutCooldown": endpoint.scale_out_cooldown_s,
        "ScaleInCooldown": endpoint.scale_in_cooldown_s,
        "ServerlessMemory": endpoint.serverless_memory_mb,
        "ServerlessConcurrency": endpoint.serverless_concurrency,
        "CapturePercentage": endpoint.capture_percentage,
        "DetailedMetrics": endpoint.detailed_metrics,
        "LatencyAlarmUs": endpoint.latency_alarm_ms * 1000,
        "AlarmEmail": endpoint.alarm_email,
        "WithLambda": function.enabled,
        "CodeKey": release.code_key if function.enabled else "",
        "ProvisionedConcurrency": function.provisioned_concurrency,
        "ReservedConcurrency": function.reserved_concurrency,
        "FunctionUrl": function.url,
        "AllowedUrlHosts": ",".join(function.allowed_url_hosts),
        "AllowedBuckets": ",".join(function.allowed_buckets),
        "Tracing": function.tracing,
    }
    if function.allowed_buckets:
        arns = [f"arn:{aws.partition}:s3:::{bucket}" for bucket in function.allowed_buckets]
        values["ReadableObjects"] = ",".join(f"{arn}/*" for arn in arns)
        values["WritableObjects"] = ",".join(f"{arn}/results/*" for arn in arns)
    parameters = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    return {**parameters, "FunctionDigest": _function_digest(parameters)}


def _function_digest(parameters: dict[str, str]) -> str:
    """Changes with anything that the function is made of: then its alias gets a new version."""
    made_of = {name: parameters[name] for name in _OF_FUNCTION}
    return hashlib.sha256(json.dumps([made_of, stacks.read_template("app")]).encode()).hexdigest()


def require_model(aws: Aws, model: str) -> None:
    """Raise where nothing lies at the model's place: CreateModel would find out a quarter of an hour later."""
    bucket, _, key = model.removeprefix("s3://").partition("/")
    answer = aws.call("s3", "list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    if not answer.get("KeyCount"):
        raise DeployError(f"nothing lies at {model}: `status JOB` names a finished job's artifact")


def cost_notes(profile: Profile) -> tuple[str, ...]:
    """What stands costs money while it stands; what that is, and what the settings imply."""
    endpoint, function, prices = profile.endpoint, profile.function, load_prices()
    if endpoint.variant == "serverless":
        rate = endpoint.serverless_memory_mb / 1024 * prices.rates["serverless_gb_second"]
        costs = [f"endpoint: nothing while idle, ${rate:.6f} for a second of work"]
    else:
        machine = endpoint_month_words(
            endpoint.instance_type, least=endpoint.min_instances, most=endpoint.max_instances
        )
        costs = [f"endpoint: {machine}"]
    if function.enabled:
        month = provisioned_month(function.provisioned_concurrency)
        costs.append(f"function: ${month:.2f} a month for {function.provisioned_concurrency} warm environments")
    return (*costs, *_advice(profile), prices.caveat)


def _advice(profile: Profile) -> list[str]:
    endpoint, notes = profile.endpoint, []
    if endpoint.variant != "serverless" and endpoint.scale_out_cooldown_s > 60:
        notes.append(
            f"scale_out_cooldown_s is {endpoint.scale_out_cooldown_s}: 60 is enough, for a new instance that is not "
            "in service yet does not lower the metric, and while it cools down a growing rush gets no further instance"
        )
    if endpoint.variant != "serverless" and endpoint.min_instances < 2:
        notes.append("one instance lies in one zone, and an update cannot try half the fleet first: prod takes two")
    if endpoint.capture_percentage and endpoint.variant == "serverless":
        notes.append("serverless endpoints capture no data: capture_percentage is not used")
    if profile.function.url == "public":
        notes.append(
            "the function's URL is public: anybody can have photos classified at your cost, at most "
            f"{profile.function.reserved_concurrency} at a time"
        )
    return notes


@dataclass(frozen=True)
class EndpointStatus:
    state: str
    failure: str
    image: str
    instances: int
    desired: int
    alarms: tuple[str, ...]


def endpoint_status(aws: Aws) -> EndpointStatus | None:
    """The endpoint as SageMaker describes it; None where there is none."""
    name = aws.profile.prefix
    found = aws.found("sagemaker", "describe_endpoint", "ValidationException", EndpointName=name)
    if found is None:
        return None
    variant: dict[str, Any] = next(iter(found.get("ProductionVariants", [])), {})
    images = variant.get("DeployedImages", [])
    alarms = aws.pages("cloudwatch", "describe_alarms", "MetricAlarms", AlarmNamePrefix=f"{name}-", StateValue="ALARM")
    return EndpointStatus(
        state=found["EndpointStatus"],
        failure=found.get("FailureReason", ""),
        image=images[0].get("ResolvedImage", "") if images else "",
        instances=variant.get("CurrentInstanceCount", 0),
        desired=variant.get("DesiredInstanceCount", 0),
        alarms=tuple(alarm["AlarmName"] for alarm in alarms),
    )


def endpoint_logs(aws: Aws) -> jobs.LogSource:
    return jobs.LogSource(f"/aws/sagemaker/Endpoints/{aws.profile.prefix}", "")


def why_it_failed(aws: Aws) -> str:
    """The container's own last words, for an endpoint that never came into service."""
    found = endpoint_status(aws)
    words = [f"endpoint is {found.state}. AWS said: {found.failure or 'nothing'}"] if found else []
    if tail := jobs.last_lines(aws, endpoint_logs(aws)):
        words += ["the container's last lines:", *(f"  {line}" for line in tail)]
    return "\n".join(words)


def invoke(aws: Aws, photo: bytes, *, content_type: str = "application/x-image", model: str = "") -> bytes:
    """One photo to the endpoint. `model` names the one of a multi-model endpoint."""
    target = {"TargetModel": model} if model else {}
    answer = aws.call(
        "sagemaker-runtime",
        "invoke_endpoint",
        EndpointName=aws.profile.prefix,
        Body=photo,
        ContentType=content_type,
        Accept="application/json",
        **target,
    )
    return bytes(answer["Body"].read())
