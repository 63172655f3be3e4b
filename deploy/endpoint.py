"""The app stack's parameters, the endpoint's state, and calls to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy import jobs, stacks
from deploy.aws import Aws
from deploy.bill import abuse_words
from deploy.errors import DeployError
from deploy.pricing import has_gpu, load_prices
from deploy.profile import Profile

# SageMaker works on an asynchronous request for up to an hour; a photo takes seconds, once an instance is free.
ASYNC_WAIT_S = 900
# AWS's rule for SageMakerVariantInvocationsPerInstance: max requests a second x safety factor x 60 seconds.
SAFETY_FACTOR = 0.5
# The image's CUDA 13 (container/requirements-torch-cuda.txt) needs NVIDIA's driver 580, which of SageMaker's hosts this
# one has; the usual one of a GPU has 470 to 550 (API reference, ProductionVariant).
GPU_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
_OF_FUNCTION = (
    *("Name", "Stage", "CodeKey", "Variant", "AllowedUrlHosts", "AllowedBuckets", "Tracing", "FunctionTimeout"),
    *("TopK", "LegacyResponse", "ResultPrefix", "CorsOrigins"),
)


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to stand: an image by digest, a model in S3, the function's zip by sha256."""

    image: str
    model: str
    code_key: str = ""


def load_factor(variant: str) -> float:
    """How much of what one instance holds it is to be given: all of it where requests wait in a queue."""
    return 1.0 if variant == "async" else SAFETY_FACTOR


def scaling_target(max_requests_per_s: float, *, variant: str) -> int:
    """For target tracking, from what a load test found one instance to hold (deploy/templates/app.yaml has the metric).

    Invocations a minute an instance; of an asynchronous endpoint, requests that wait for each instance: those that it
    works off in a minute, so that whatever makes them wait longer brings a further one.
    """
    return max(1, int(max_requests_per_s * load_factor(variant) * 60))


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
        "InferenceAmi": GPU_AMI if has_gpu(endpoint.instance_type) else "",
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
        "FunctionTimeout": function.timeout_s,
        "TopK": function.top_k or "",
        "LegacyResponse": function.legacy_response,
        "ResultPrefix": function.result_prefix,
        "CorsOrigins": ",".join(function.cors_origins),
    }
    if function.allowed_buckets:
        arns = [f"arn:{aws.partition}:s3:::{bucket}" for bucket in function.allowed_buckets]
        values["ReadableObjects"] = ",".join(f"{arn}/*" for arn in arns)
        values["WritableObjects"] = ",".join(f"{arn}/{function.result_prefix}*" for arn in arns)
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


def require_same_variant(aws: Aws, stack: stacks.Stack) -> None:
    """Raise where the endpoint that stands is of another variant: UpdateEndpoint makes none into another.

    Developer guide, "Update a serverless endpoint"; of AsyncInferenceConfig it says that it "cannot be removed".
    """
    standing = stacks.describe(aws, stack.name) or {}
    parameters = {entry["ParameterKey"]: entry["ParameterValue"] for entry in standing.get("Parameters", [])}
    before, after = parameters.get("Variant"), stack.parameters["Variant"]
    if before not in (None, after):
        raise DeployError(
            f"the endpoint that stands is {before}, and AWS cannot make it {after}: `endpoint destroy` first (models "
            "and images stay), then `endpoint apply`"
        )


def advice(profile: Profile) -> tuple[str, ...]:
    """What the settings imply that the reader may not expect."""
    return (*_advice(profile), load_prices().caveat)


def _advice(profile: Profile) -> list[str]:
    endpoint, notes = profile.endpoint, []
    if endpoint.variant != "serverless" and endpoint.scale_out_cooldown_s > 60:
        notes.append(
            f"scale_out_cooldown_s is {endpoint.scale_out_cooldown_s}: 60 is enough, for a new instance that is not "
            "in service yet does not lower the metric, and while it cools down a growing rush gets no further instance"
        )
    if endpoint.variant != "serverless" and endpoint.min_instances < 2:
        notes.append("one instance lies in one zone, and an update cannot try half the fleet first: prod takes two")
    if endpoint.capture_percentage:
        notes.append(
            "serverless endpoints capture no data: capture_percentage is not used"
            if endpoint.variant == "serverless"
            else f"{endpoint.capture_percentage} % of the photos and answers are kept in captures/, at S3's price"
        )
    if endpoint.detailed_metrics and endpoint.variant != "serverless":
        notes.append(
            "detailed_metrics adds some tens of metrics for each instance; where CloudWatch bills them as custom ones, "
            f"each is ${load_prices().rates['custom_metric_month']:.2f} a month"
        )
    if profile.function.url == "public":
        notes.append(abuse_words(profile))
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
    """The container's own last words, for an endpoint that does not come into service."""
    found = endpoint_status(aws)
    words = [f"endpoint is {found.state}" + (f". AWS said: {found.failure}" if found.failure else "")] if found else []
    if tail := jobs.last_lines(aws, endpoint_logs(aws)):
        words += ["the container's last lines:", *(f"  {line}" for line in tail)]
    return "\n".join(words)


class StuckWatch:
    """Shows what the container last wrote, every five minutes for as long as the endpoint does not come into service.

    CloudFormation is silent meanwhile, and SageMaker gives up only after half an hour.
    """

    _PATIENCE_S = 300

    def __init__(self, aws: Aws, say: Callable[[str], None]) -> None:
        self._aws, self._say = aws, say
        self._next_look = aws.clock() + self._PATIENCE_S

    def __call__(self) -> None:
        if self._aws.clock() < self._next_look:
            return
        self._next_look = self._aws.clock() + self._PATIENCE_S
        found = endpoint_status(self._aws)
        if found and found.state in ("Creating", "Updating"):
            self._say(why_it_failed(self._aws))


def invoke(aws: Aws, photo: bytes, *, model: str = "") -> bytes:
    """One photo to the endpoint, and its answer. `model` names the one of a multi-model endpoint."""
    request: dict[str, Any] = {
        "EndpointName": aws.profile.prefix,
        "ContentType": "application/x-image",
        "Accept": "application/json",
    }
    if aws.profile.endpoint.variant == "async":
        return _invoke_async(aws, photo, request)
    if aws.profile.endpoint.variant == "multi-model":
        if not model:
            raise DeployError("the endpoint holds many models: say which with --model, e.g. --model dogs.tar.gz")
        request["TargetModel"] = model
    return bytes(aws.call("sagemaker-runtime", "invoke_endpoint", **request, Body=photo)["Body"].read())


def _invoke_async(aws: Aws, photo: bytes, request: dict[str, Any]) -> bytes:
    """By way of the bucket: the photo is put there, and the answer or the failure waited for."""
    key = f"async/photos/{hashlib.sha256(photo).hexdigest()}"
    aws.call("s3", "put_object", Bucket=aws.bucket, Key=key, Body=photo)
    place = f"s3://{aws.bucket}/{key}"
    sent = aws.call("sagemaker-runtime", "invoke_endpoint_async", **request, InputLocation=place)
    deadline = aws.clock() + ASYNC_WAIT_S
    while aws.clock() < deadline:
        if (answer := _object(aws, sent["OutputLocation"])) is not None:
            return answer
        if (failure := _object(aws, sent.get("FailureLocation", ""))) is not None:
            raise DeployError(f"the endpoint refused the photo: {failure.decode(errors='replace')[:1000]}")
        aws.sleep(2)
    raise DeployError(f"no answer at {sent['OutputLocation']} within {ASYNC_WAIT_S / 60:g} minutes: `endpoint status`")


def _object(aws: Aws, uri: str) -> bytes | None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not key:
        return None
    found = aws.found("s3", "get_object", "NoSuchKey", Bucket=bucket, Key=key)
    return None if found is None else bytes(found["Body"].read())
