"""What a stage has in AWS is found by name and by tag, whatever its stacks say, and `destroy --all` ends it."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from deploy import inventory, jobs, teardown
from deploy.aws import Aws
from deploy.errors import DeployError
from tests.aws.conftest import ACCOUNT, BUCKET, REGION, Run, Sent, delete_policies

TAGS = [{"Key": "project", "Value": "kennel"}, {"Key": "stage", "Value": "dev"}]
OF_ANOTHER_STAGE = [{"Key": "project", "Value": "kennel"}, {"Key": "stage", "Value": "prod"}]


def _arn(name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}"


def _summary(name: str, **more: Any) -> dict[str, Any]:
    times = {"CreationTime": 0, "TrainingJobStatus": "InProgress"}
    return {"TrainingJobName": name, "TrainingJobArn": _arn(name), **times, **more}


def test_a_running_job_is_ours_by_its_tags_whatever_its_name(aws: Aws) -> None:
    stubber = Stubber(aws.client("sagemaker"))
    found = {"TrainingJobSummaries": [_summary("dogs-1"), _summary("of-prod")]}
    stubber.add_response("list_training_jobs", found, {"StatusEquals": "InProgress"})
    stubber.add_response("list_tags", {"Tags": TAGS}, {"ResourceArn": _arn("dogs-1")})
    stubber.add_response("list_tags", {"Tags": OF_ANOTHER_STAGE}, {"ResourceArn": _arn("of-prod")})
    stubber.add_response("list_training_jobs", {"TrainingJobSummaries": []}, {"StatusEquals": "Stopping"})
    with stubber:
        assert list(inventory.training_jobs(aws)) == ["dogs-1"]


def test_instances_that_a_job_keeps_warm_are_found(aws: Aws) -> None:
    stubber = Stubber(aws.client("sagemaker"))
    warm = _summary("dogs-1", WarmPoolStatus={"Status": "Available"})
    stubber.add_response("list_training_jobs", {"TrainingJobSummaries": [warm]}, {"WarmPoolStatusEquals": "Available"})
    stubber.add_response("list_tags", {"Tags": TAGS}, {"ResourceArn": _arn("dogs-1")})
    with stubber:
        assert list(inventory.warm_pools(aws)) == ["dogs-1"]


@pytest.fixture
def planted(sent: Sent) -> set[str]:
    """One of each kind that a stack would have made, made by hand, and beside each one of somebody else."""
    role = f"arn:aws:iam::{ACCOUNT}:role/r"
    sagemaker: Any = boto3.client("sagemaker")
    for name, owner in (("Model-AbC", TAGS), ("Model-XyZ", OF_ANOTHER_STAGE)):
        container: Any = {"Image": "i", "ModelDataUrl": f"s3://{BUCKET}/m"}
        sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container, Tags=owner)
    variant = {
        "VariantName": "all",
        "ModelName": "Model-AbC",
        "InstanceType": "ml.m5.xlarge",
        "InitialInstanceCount": 1,
    }
    for name, owner in (("EndpointConfig-AbC", TAGS), ("EndpointConfig-XyZ", [])):
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=owner)
    sagemaker.create_endpoint(EndpointName="kennel-dev", EndpointConfigName="EndpointConfig-AbC")
    for name in ("kennel-dev-failed", "kennel-prod-failed"):
        boto3.client("sqs").create_queue(QueueName=name)
        boto3.client("sns").create_topic(Name=name)
    cloudwatch: Any = boto3.client("cloudwatch")
    for name in ("kennel-dev-endpoint-5xx", "TargetTracking-endpoint/kennel-dev/variant/all-AlarmHigh", "other"):
        rule: Any = {
            "EvaluationPeriods": 1,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": 1.0,
            "Period": 60,
        }
        cloudwatch.put_metric_alarm(AlarmName=name, MetricName="m", Namespace="n", Statistic="Sum", **rule)
    for name in ("kennel-dev", "kennel-dev-of-somebody"):
        cloudwatch.put_dashboard(DashboardName=name, DashboardBody="{}")
    iam: Any = boto3.client("iam")
    statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::kennel/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    for name in ("kennel-dev-base-PullImage-1", "other"):
        iam.create_policy(PolicyName=name, PolicyDocument=document)
        iam.create_instance_profile(InstanceProfileName=name)
    ec2: Any = boto3.client("ec2")
    tags = [{"ResourceType": "volume", "Tags": TAGS}]
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, TagSpecifications=tags)["VolumeId"]
    sent.requests.clear()
    return {
        "model Model-AbC",
        "endpoint configuration EndpointConfig-AbC",
        "endpoint kennel-dev",
        "topic kennel-dev-failed",
        "alarm kennel-dev-endpoint-5xx",
        "alarm TargetTracking-endpoint/kennel-dev/variant/all-AlarmHigh",
        "dashboard kennel-dev",
        "policy kennel-dev-base-PullImage-1",
        "instance profile kennel-dev-base-PullImage-1",
        f"EC2 volume {volume}",
    }


def test_what_no_stack_knows_of_is_found_and_what_is_of_others_is_not(aws: Aws, planted: set[str]) -> None:
    found = inventory.take(aws)
    queues = [one.name for one in found if one.kind == "queue"]
    assert [name.rsplit("/", 1)[-1] for name in queues] == ["kennel-dev-failed"]
    assert {f"{one.kind} {one.name}" for one in found if one.kind != "queue"} == planted


def test_the_proof_names_all_that_is_left(aws: Aws, planted: set[str]) -> None:
    with pytest.raises(DeployError) as raised:
        teardown.prove_gone(aws)
    assert all(f"  - {one}\n" in str(raised.value) for one in planted)
    assert aws.clock() > 300  # it was waited for


def test_the_logs_of_our_jobs_go_and_those_of_others_stay(aws: Aws, base: None) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="jobs/dogs-1/output/model.tar.gz", Body=b"x")
    boto3.client("s3").put_object(Bucket=BUCKET, Key="checkpoints/dogs-2/c.safetensors", Body=b"x")
    logs: Any = boto3.client("logs")
    logs.create_log_group(logGroupName=jobs.TRAINING_LOGS)
    for stream in ("dogs-1/algo-1-17", "dogs-2/algo-1-18", "dogs-10/algo-1-19"):
        logs.create_log_stream(logGroupName=jobs.TRAINING_LOGS, logStreamName=stream)
    assert list(inventory.job_logs(aws)) == ["dogs-1/algo-1-17", "dogs-2/algo-1-18"]
    delete_policies()
    teardown.destroy(aws, say=lambda _: None)
    left = logs.describe_log_streams(logGroupName=jobs.TRAINING_LOGS)["logStreams"]
    assert [one["logStreamName"] for one in left] == ["dogs-10/algo-1-19"]


def test_log_groups_that_begin_with_our_names_are_of_others(aws: Aws) -> None:
    ours = ["/aws/sagemaker/Endpoints/kennel-dev", "/aws/lambda/kennel-dev-classify", "/kennel/dev/ec2"]
    others = ["/aws/sagemaker/Endpoints/kennel-dev2", "/aws/lambda/kennel-dev-prod-classify", "/kennel/dev/ec2-of-bob"]
    for name in (*ours, *others):
        boto3.client("logs").create_log_group(logGroupName=name)
    teardown.destroy(aws, say=lambda _: None)
    left: Any = boto3.client("logs").describe_log_groups()["logGroups"]
    assert {one["logGroupName"] for one in left} == set(others)


def test_a_repository_that_another_stage_uses_is_not_destroyed(run: Run, base: None, sent: Sent) -> None:
    template = json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})
    boto3.client("cloudformation").create_stack(StackName="kennel-prod-app", TemplateBody=template)
    sent.requests.clear()
    answer = run("destroy", "--all", "--yes")
    assert answer.code == 1
    assert "repository 'kennel' belongs to this stage, and kennel-prod-app runs its image" in answer.error
    assert sent.writes == []
