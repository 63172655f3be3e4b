"""The endpoint of every variant, as the template describes it, against SageMaker's own model of the requests.

CloudFormation hands these properties to CreateModel, CreateEndpointConfig, CreateEndpoint and PutScalingPolicy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import botocore.session
import pytest

from config import Config
from deploy.aws import Aws
from deploy.endpoint import GPU_AMI, Release, app_parameters
from deploy.profile import VARIANTS
from deploy.stacks import TEMPLATES, read_template
from tests.aws.cloudformation import resources
from tests.aws.model_check import violations

PARAMETERS = {
    "Stage": "dev",
    "Bucket": "kennel-dev-bucket",
    "EndpointRoleArn": "arn:aws:iam::123456789012:role/kennel-dev-endpoint",
    "ImageUri": "123456789012.dkr.ecr.eu-west-3.amazonaws.com/kennel@sha256:" + "0" * 64,
    "ModelDataUrl": "s3://kennel-dev-bucket/jobs/dogs-1/output/model.tar.gz",
    "CodeKey": "functions/x.zip",
}

RELEASE = Release(image=PARAMETERS["ImageUri"], model=PARAMETERS["ModelDataUrl"], code_key="functions/1.zip")
CUDA_LOCK = TEMPLATES.parents[1] / "container/requirements-torch-cuda.txt"


def _shape(service: str, operation: str) -> Any:
    return botocore.session.get_session().get_service_model(service).operation_model(operation).input_shape


def _typed(shape: Any, value: Any) -> Any:
    """CloudFormation's strings as the numbers and truths that the request has."""
    if shape.type_name == "structure":
        return {key: _typed(shape.members[key], one) if key in shape.members else one for key, one in value.items()}
    if shape.type_name == "list":
        return [_typed(shape.member, one) for one in value]
    convert: dict[str, Callable[[Any], Any]] = {
        "integer": int,
        "double": float,
        "float": float,
        "boolean": lambda one: one in (True, "true"),
    }
    return convert.get(shape.type_name, lambda one: one)(value)


def _fits(service: str, operation: str, request: dict[str, Any]) -> None:
    shape = _shape(service, operation)
    assert list(violations(shape, _typed(shape, request))) == []


@pytest.mark.parametrize("least", ["1", "2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_fits(variant: str, least: str) -> None:
    switches = {"CapturePercentage": "20", "DetailedMetrics": "true", "MinInstances": least}
    found = resources(read_template("app"), {**PARAMETERS, **switches, "Variant": variant, "WithLambda": "false"})
    _fits("sagemaker", "CreateModel", {**found["Model"], "ModelName": "m"})
    config = {**found["EndpointConfig"], "EndpointConfigName": "c"}
    for one in config["ProductionVariants"]:
        one["ModelName"] = "m"
    _fits("sagemaker", "CreateEndpointConfig", config)
    update = {**found["Endpoint"], "EndpointConfigName": "c"}
    _fits("sagemaker", "UpdateEndpoint", update)
    if variant != "serverless":
        policy = {**found["ScalingPolicy"], **{key: found["ScalableTarget"][key] for key in TARGET}}
        _fits(
            "application-autoscaling", "PutScalingPolicy", {k: v for k, v in policy.items() if k != "ScalingTargetId"}
        )
        _fits("application-autoscaling", "RegisterScalableTarget", found["ScalableTarget"])
    for name, alarm in found.items():
        if name.endswith("Alarm"):
            _fits("cloudwatch", "PutMetricAlarm", alarm)


TARGET = ("ServiceNamespace", "ScalableDimension", "ResourceId")


def test_serverless_has_none_of_what_it_does_not_know() -> None:
    """Line 76 of docs/contract.md: no isolation, no data capture; and no instances to scale."""
    switches = {"CapturePercentage": "20", "Variant": "serverless"}
    found = resources(read_template("app"), {**PARAMETERS, **switches})
    assert found["Model"]["EnableNetworkIsolation"] is False
    assert "DataCaptureConfig" not in found["EndpointConfig"]
    assert "ScalableTarget" not in found
    (variant,) = found["EndpointConfig"]["ProductionVariants"]
    assert set(variant) == {"VariantName", "ModelName", "InitialVariantWeight", "ServerlessConfig"}


@pytest.mark.parametrize(
    ("kind", "ami"), [("ml.g4dn.xlarge", GPU_AMI), ("ml.p4d.24xlarge", GPU_AMI), ("ml.c6i.xlarge", None)]
)
def test_a_gpu_gets_a_host_whose_driver_knows_the_images_cuda(aws: Aws, kind: str, ami: str | None) -> None:
    aws.profile = dataclasses.replace(
        aws.profile, endpoint=dataclasses.replace(aws.profile.endpoint, instance_type=kind)
    )
    config = resources(read_template("app"), app_parameters(aws, RELEASE))["EndpointConfig"]
    assert config["ProductionVariants"][0].get("InferenceAmiVersion") == ami
    config["ProductionVariants"][0]["ModelName"] = "m"
    _fits("sagemaker", "CreateEndpointConfig", {**config, "EndpointConfigName": "c"})
    # By botocore's ProductionVariant, this host has driver 580, for CUDA 13.0: a newer CUDA needs another one.
    assert re.search(r"^cuda-toolkit==13\.0\.", CUDA_LOCK.read_text(), re.MULTILINE)


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_detailed_metrics_are_said_either_way(wanted: str) -> None:
    """A configuration that says nothing of detailed observability has it, and is billed for it."""
    config = resources(read_template("app"), {**PARAMETERS, "DetailedMetrics": wanted})["EndpointConfig"]
    switches = {"EnableEnhancedMetrics": wanted, "EnableDetailedObservability": wanted}
    assert config["MetricsConfig"] == {**switches, "MetricPublishFrequencyInSeconds": 60}


def test_multi_model_tells_the_container() -> None:
    container = resources(read_template("app"), {**PARAMETERS, "Variant": "multi-model"})["Model"]["PrimaryContainer"]
    assert container["Mode"] == "MultiModel"
    assert container["Environment"] == {"SAGEMAKER_MULTI_MODEL": "true"}


# What a profile can say of the function itself.
SETTINGS: dict[str, Any] = {
    "allowed_url_hosts": ("images.example.com",),
    "allowed_buckets": ("photos", "more-photos"),
    "tracing": True,
    "timeout_s": 29,
    "top_k": 3,
    "legacy_response": True,
    "result_prefix": "labels/",
    "cors_origins": ("https://shop.example.com",),
}


def _function_of(aws: Aws, **settings: Any) -> dict[str, Any]:
    """The app stack's resources with these settings of the function."""
    aws.profile = dataclasses.replace(aws.profile, function=dataclasses.replace(aws.profile.function, **settings))
    return resources(read_template("app"), app_parameters(aws, RELEASE))


def test_the_function_reads_the_profiles_settings(aws: Aws) -> None:
    as_is = _function_of(aws)["Function"]
    assert Config.from_env(as_is["Environment"]["Variables"]) == Config(endpoint_name="kennel-dev")
    found = _function_of(aws, **SETTINGS)
    assert Config.from_env(found["Function"]["Environment"]["Variables"]) == Config(
        endpoint_name="kennel-dev",
        allowed_url_hosts=frozenset({"images.example.com"}),
        allowed_buckets=frozenset({"photos", "more-photos"}),
        top_k=3,
        legacy_response=True,
        result_prefix="labels/",
        cors_origins=frozenset({"https://shop.example.com"}),
        function_timeout_s=29,
    )
    assert (as_is["Timeout"], found["Function"]["Timeout"]) == ("75", "29")
    (writes,) = [
        one for one in found["FunctionRole"]["Policies"][0]["PolicyDocument"]["Statement"] if "Write" in one["Sid"]
    ]
    assert writes["Resource"] == "arn:aws:s3:::photos/labels/*,arn:aws:s3:::more-photos/labels/*"


def test_the_functions_digest_follows_the_function_and_nothing_else(aws: Aws) -> None:
    release = Release(image="i", model="m", code_key="functions/1.zip")
    profile = aws.profile

    def digest(release: Release = release, **changes: Any) -> str:
        aws.profile = dataclasses.replace(profile, **changes)
        return app_parameters(aws, release)["FunctionDigest"]

    as_is = digest()
    assert digest(dataclasses.replace(release, code_key="functions/2.zip")) != as_is
    for name, value in SETTINGS.items():
        assert digest(function=dataclasses.replace(profile.function, **{name: value})) != as_is, name
    assert digest(dataclasses.replace(release, image="j", model="n")) == as_is
    assert digest(endpoint=dataclasses.replace(profile.endpoint, max_instances=9)) == as_is


def test_a_canary_is_tried_where_there_are_two_instances() -> None:
    for least, kind in (("1", "ALL_AT_ONCE"), ("2", "CANARY")):
        found = resources(read_template("app"), {**PARAMETERS, "MinInstances": least})
        policy = found["Endpoint"]["DeploymentConfig"]["BlueGreenUpdatePolicy"]
        assert policy["TrafficRoutingConfiguration"]["Type"] == kind


def test_features_that_are_off_give_the_function_no_right() -> None:
    found = resources(read_template("app"), PARAMETERS)
    statements = found["FunctionRole"]["Policies"][0]["PolicyDocument"]["Statement"]
    assert [one["Sid"] for one in statements] == ["CallTheOneEndpoint", "Log", "KeepWhatFailed"]
    more = {"AllowedBuckets": "photos", "Tracing": "true"}
    found = resources(read_template("app"), {**PARAMETERS, **more})
    statements = found["FunctionRole"]["Policies"][0]["PolicyDocument"]["Statement"]
    assert [one["Sid"] for one in statements[3:]] == ["ReadPhotos", "WriteAnswers", "Trace"]
