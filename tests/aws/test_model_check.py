"""The walk beside AWS's models finds what botocore lets through."""

from __future__ import annotations

import copy
from typing import Any

import botocore.session
import pytest

from deploy.profile import Profile, Training
from deploy.training import Job, training_request
from tests.aws.model_check import violations


@pytest.fixture
def request_and_shape() -> tuple[dict[str, Any], Any]:
    model = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    settings = Training(instance_type="ml.g4dn.xlarge", instances=2)
    job = Job(
        name="kennel-dev-train-1",
        image="123456789012.dkr.ecr.eu-west-3.amazonaws.com/kennel@sha256:" + "0" * 64,
        bucket="kennel-dev",
        channels={"training": "s3://kennel-dev/data/dogs/train/"},
        settings=settings,
        hyperparameters={"epochs": "3"},
    )
    role = "arn:aws:iam::123456789012:role/kennel-dev-training"
    return training_request(job, role_arn=role, profile=Profile("dev")), model.input_shape


def test_what_we_build_fits(request_and_shape: tuple[dict[str, Any], Any]) -> None:
    request, shape = request_and_shape
    assert list(violations(shape, request)) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("ResourceConfig", "InstanceType"), "ml.huge.xlarge", "not in the enum"),
        (("TrainingJobName",), "a_b", "does not match"),
        (("TrainingJobName",), "x" * 64, "not in 1..63"),
        (("ResourceConfig", "KeepAlivePeriodInSeconds"), 21601, "not in 0..21600"),
        (("StoppingCondition", "MaxRuntimeInSeconds"), 0, "not in 1.."),
        (("RoleArn",), "kennel-dev-training", "does not match"),
        (("HyperParameters", "epochs"), "3" * 2501, "not in 0..2500"),
        (("Colour",), "red", "no such member"),
    ],
)
def test_a_planted_fault_is_found(
    request_and_shape: tuple[dict[str, Any], Any], path: tuple[str, ...], value: Any, words: str
) -> None:
    request, shape = copy.deepcopy(request_and_shape[0]), request_and_shape[1]
    place = request
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = list(violations(shape, request))
    assert any(words in one and path[-1] in one for one in found), found


def test_a_missing_member_is_found(request_and_shape: tuple[dict[str, Any], Any]) -> None:
    request, shape = copy.deepcopy(request_and_shape[0]), request_and_shape[1]
    del request["OutputDataConfig"]["S3OutputPath"]
    assert list(violations(shape, request)) == [".OutputDataConfig.S3OutputPath: missing"]


def test_a_job_inside_a_vpc_fits() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    settings = Training(subnets=("subnet-0a1",), security_groups=("sg-0a1",), spot=False)
    channels = {"training": "s3://kennel-dev/data/dogs/", "pretrained": "s3://kennel-dev/weights/"}
    job = Job(name="j", image="i", bucket="kennel-dev", channels=channels, settings=settings, warm_minutes=360)
    role = "arn:aws:iam::123456789012:role/kennel-dev-training"
    request = training_request(job, role_arn=role, profile=Profile("dev"))
    assert request["VpcConfig"] == {"Subnets": ["subnet-0a1"], "SecurityGroupIds": ["sg-0a1"]}
    assert list(violations(model.input_shape, request)) == []
