"""What AWS answers when things go wrong, played by botocore's Stubber: the sentences that follow, and bounded waits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.stub import ANY, Stubber

from deploy import endpoint, images, jobs, quotas, stacks
from deploy.aws import ROLE_RETRY_S, Aws
from deploy.errors import AwsError, DeployError
from deploy.profile import Profile
from tests.aws.conftest import ACCOUNT, BUCKET, REGION, Clock, Reply, Run, refusal

Stub = Callable[[str], Stubber]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aws(aws_env: dict[str, str], profiles: Path, clock: Clock) -> Aws:
    return Aws(Profile.load("dev", profiles), sleep=clock.sleep, clock=clock)


@pytest.fixture
def stub(aws: Aws) -> Stub:
    def of(service: str) -> Stubber:
        stubber = Stubber(aws.client(service))
        stubber.activate()
        return stubber

    return of


URI = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/kennel@sha256:{'0' * 64}"
TRAIN = ("train", "--data", "dogs", "--image", URI, "--name", "dogs-2")
APPLY = ("endpoint", "apply", "--model", f"s3://{BUCKET}/jobs/dogs-1/output/model.tar.gz", "--image", URI, "--yes")


@pytest.mark.parametrize(
    ("command", "operation", "code", "said", "remedy"),
    [
        (TRAIN, "sagemaker.CreateTrainingJob", "AccessDeniedException", "bob is not authorized to do so", "`doctor`"),
        (TRAIN, "sagemaker.CreateTrainingJob", "ResourceLimitExceeded", "The limit is 0 Instances", "Service Quotas"),
        (TRAIN, "sagemaker.CreateTrainingJob", "ResourceInUse", "Job names must be unique", "another with --name"),
        (TRAIN, "sagemaker.DescribeTrainingJob", "ThrottlingException", "Rate exceeded", "repeat in a minute"),
        (TRAIN, "s3.ListObjectsV2", "ExpiredToken", "The provided token has expired", "aws sso login"),
        (APPLY, "s3.PutObject", "AccessDenied", "Access Denied", "`doctor`"),
        (APPLY, "cloudformation.CreateChangeSet", "Throttling", "Rate exceeded", "repeat in a minute"),
        (APPLY, "cloudformation.DescribeStacks", "AccessDenied", "bob is not authorized to do so", "`doctor`"),
    ],
)
def test_a_command_that_aws_refuses_says_where_what_and_what_to_do(
    run: Run, base: None, reply: Reply, command: tuple[str, ...], operation: str, code: str, said: str, remedy: str
) -> None:
    for key in ("data/dogs/train/a/1.jpg", "jobs/dogs-1/output/model.tar.gz"):
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"x")
    reply(operation, refusal(code, said))
    answer = run(*command)
    assert answer.code == 1
    service, _, name = operation.partition(".")
    assert re.match(rf"{service} {xform_name(name)} \(\S+\)\nAWS said {code}: {said}\n", answer.error)
    assert remedy in answer.error


def test_a_role_that_is_too_new_is_waited_for(aws: Aws, stub: Stub, clock: Clock) -> None:
    stubber = stub("sagemaker")
    said = (
        "Could not assume role arn:aws:iam::123456789012:role/kennel-dev-training. Please ensure that the role exists"
    )
    for _ in range(2):
        stubber.add_client_error("stop_training_job", "ValidationException", said)
    stubber.add_response("stop_training_job", {}, {"TrainingJobName": "dogs-1"})
    aws.call_with_new_role("sagemaker", "stop_training_job", TrainingJobName="dogs-1")
    stubber.assert_no_pending_responses()
    assert 0 < clock.now < ROLE_RETRY_S


def test_the_wait_for_a_role_is_bounded(aws: Aws, stub: Stub, clock: Clock) -> None:
    stubber = stub("sagemaker")
    for _ in range(50):
        stubber.add_client_error("stop_training_job", "ValidationException", "Could not assume role x")
    with pytest.raises(AwsError, match="Could not assume role"):
        aws.call_with_new_role("sagemaker", "stop_training_job", TrainingJobName="dogs-1")
    assert ROLE_RETRY_S <= clock.now <= ROLE_RETRY_S + 10


def test_another_error_is_not_waited_for(aws: Aws, stub: Stub, clock: Clock) -> None:
    stub("sagemaker").add_client_error("stop_training_job", "ValidationException", "no such job")
    with pytest.raises(AwsError):
        aws.call_with_new_role("sagemaker", "stop_training_job", TrainingJobName="dogs-1")
    assert clock.now == 0


def _quota(name: str, value: float) -> dict[str, Any]:
    return {"QuotaName": name, "QuotaCode": "L-1234", "Value": value}


def test_a_quota_that_is_too_low_is_found_before_the_job(aws: Aws, stub: Stub) -> None:
    name = "ml.g4dn.xlarge for spot training job usage"
    stub("service-quotas").add_response("list_service_quotas", {"Quotas": [_quota(name, 0)]}, {"ServiceCode": ANY})
    with pytest.raises(DeployError, match=r"is 0 in eu-west-3; this needs 2\n.*--quota-code L-1234 --desired-value 2"):
        quotas.require_sagemaker(aws, "ml.g4dn.xlarge", use="training job", count=2, spot=True)


def test_a_quota_that_was_never_changed_is_awss_default(aws: Aws, stub: Stub) -> None:
    stubber, name = stub("service-quotas"), "ml.m5.large for training job usage"
    stubber.add_response("list_service_quotas", {"Quotas": []}, {"ServiceCode": ANY})
    stubber.add_response("list_aws_default_service_quotas", {"Quotas": [_quota(name, 4)]}, {"ServiceCode": ANY})
    assert "is 4; this needs 1" in quotas.require_sagemaker(aws, "ml.m5.large", use="training job", count=1)


def test_quotas_that_may_not_be_read_do_not_stop_a_job(aws: Aws, stub: Stub) -> None:
    stub("service-quotas").add_client_error("list_service_quotas", "AccessDeniedException", "no")
    words = quotas.require_sagemaker(aws, "ml.m5.large", use="training job", count=1)
    assert "could not be read (AccessDeniedException)" in words


def test_ec2_counts_vcpus(aws: Aws, stub: Stub) -> None:
    name = "Running On-Demand G and VT instances"
    stub("service-quotas").add_response("list_service_quotas", {"Quotas": [_quota(name, 2)]}, {"ServiceCode": ANY})
    with pytest.raises(DeployError, match="is 2 in eu-west-3; this needs 4"):
        quotas.require_ec2(aws, "g4dn.xlarge")


def _stack(state: str) -> dict[str, Any]:
    return {"Stacks": [{"StackName": "kennel-dev-app", "StackStatus": state, "CreationTime": 0}]}


def _event(name: str, state: str, reason: str = "", kind: str = "AWS::SageMaker::Endpoint") -> dict[str, Any]:
    return {
        "StackId": "arn:stack",
        "EventId": f"{name}-{state}",
        "StackName": "kennel-dev-app",
        "LogicalResourceId": name,
        "PhysicalResourceId": "arn:stack" if kind == "AWS::CloudFormation::Stack" else name,
        "ResourceType": kind,
        "ResourceStatus": state,
        "ResourceStatusReason": reason,
        "Timestamp": 0,
    }


FAILED = [
    _event("Dashboard", "CREATE_FAILED", "Resource creation cancelled", "AWS::CloudWatch::Dashboard"),
    _event("Endpoint", "CREATE_FAILED", "The primary container did not pass the ping health check"),
    _event("kennel-dev-app", "CREATE_IN_PROGRESS", "User Initiated", "AWS::CloudFormation::Stack"),
    _event("Model", "CREATE_FAILED", "of an older operation", "AWS::SageMaker::Model"),
]


def test_a_stack_that_fails_names_the_first_failure(aws: Aws, stub: Stub) -> None:
    stubber = stub("cloudformation")
    for state in ("CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE"):
        stubber.add_response("describe_stacks", _stack(state), {"StackName": "kennel-dev-app"})
        stubber.add_response("describe_stack_events", {"StackEvents": FAILED}, {"StackName": "kennel-dev-app"})
    stubber.add_response("describe_stack_events", {"StackEvents": FAILED}, {"StackName": "kennel-dev-app"})
    with pytest.raises(DeployError, match=r"ROLLBACK_COMPLETE\nAWS said of Endpoint .*: The primary container did not"):
        stacks.wait(aws, "kennel-dev-app", say=lambda _: None)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("UPDATE_IN_PROGRESS", "another apply is under way"),
        ("ROLLBACK_COMPLETE", "`endpoint destroy`"),
        ("UPDATE_ROLLBACK_FAILED", "`endpoint rollback` first"),
    ],
)
def test_a_half_created_stack_is_not_built_upon(aws: Aws, stub: Stub, state: str, words: str) -> None:
    stubber = stub("cloudformation")
    stubber.add_response("describe_stacks", _stack(state), {"StackName": "kennel-dev-app"})
    stubber.add_response("describe_stack_events", {"StackEvents": FAILED}, {"StackName": "kennel-dev-app"})
    with pytest.raises(DeployError, match=words):
        stacks.propose(aws, stacks.Stack("kennel-dev-app", "{}", {}))


@pytest.mark.parametrize(
    ("state", "operation"),
    [("UPDATE_ROLLBACK_FAILED", "continue_update_rollback"), ("CREATE_FAILED", "rollback_stack")],
)
def test_a_half_way_update_is_brought_back(aws: Aws, stub: Stub, state: str, operation: str) -> None:
    stubber = stub("cloudformation")
    name = {"StackName": "kennel-dev-app"}
    stubber.add_response("describe_stacks", _stack(state), name)
    stubber.add_response(operation, {}, name)
    stubber.add_response("describe_stacks", _stack("UPDATE_ROLLBACK_COMPLETE"), name)
    stubber.add_response("describe_stack_events", {"StackEvents": []}, name)
    stubber.add_response("describe_stack_events", {"StackEvents": []}, name)
    stubber.add_response("describe_stacks", _stack("UPDATE_ROLLBACK_COMPLETE"), name)
    assert stacks.go_back(aws, "kennel-dev-app", say=lambda _: None)
    stubber.assert_no_pending_responses()


def test_a_change_set_without_changes_is_nothing_to_do(aws: Aws, stub: Stub) -> None:
    """As AWS answers it: FAILED, with a reason. moto answers with an empty change set instead."""
    stubber = stub("cloudformation")
    for _ in range(2):
        stubber.add_response("describe_stacks", _stack("UPDATE_COMPLETE"), {"StackName": "kennel-dev-app"})
    arn = "arn:aws:cloudformation:eu-west-3:123456789012:changeSet/kennel-1/2"
    stubber.add_response("create_change_set", {"Id": arn})
    reason = "The submitted information didn't contain changes. Submit different information to create a change set."
    described = {"Status": "FAILED", "StatusReason": reason, "Changes": []}
    stubber.add_response("describe_change_set", described, {"ChangeSetName": arn})
    stubber.add_response("delete_change_set", {}, {"ChangeSetName": arn, "StackName": "kennel-dev-app"})
    stubber.add_response("describe_stacks", _stack("UPDATE_COMPLETE"), {"StackName": "kennel-dev-app"})
    changes = stacks.propose(aws, stacks.Stack("kennel-dev-app", "{}", {}))
    assert (changes.arn, changes.steps) == ("", ())
    stubber.assert_no_pending_responses()


def test_a_declined_plan_leaves_the_stack_that_somebody_made_meanwhile(aws: Aws, stub: Stub) -> None:
    stubber = stub("cloudformation")
    for _ in range(2):
        stubber.add_client_error("describe_stacks", "ValidationError", "Stack with id kennel-dev-app does not exist")
    arn = "arn:aws:cloudformation:eu-west-3:123456789012:changeSet/kennel-1/2"
    stubber.add_response("create_change_set", {"Id": arn})
    stubber.add_response("describe_change_set", {"Status": "CREATE_COMPLETE", "Changes": []}, {"ChangeSetName": arn})
    stubber.add_response("delete_change_set", {}, {"ChangeSetName": arn, "StackName": "kennel-dev-app"})
    stubber.add_response("describe_stacks", _stack("CREATE_IN_PROGRESS"), {"StackName": "kennel-dev-app"})
    stack = stacks.Stack("kennel-dev-app", "{}", {})
    stacks.discard(aws, stack, stacks.propose(aws, stack))  # a `delete_stack` would find no answer here
    stubber.assert_no_pending_responses()


def test_what_was_changed_by_hand_is_named(aws: Aws, stub: Stub, clock: Clock) -> None:
    stubber = stub("cloudformation")
    stubber.add_response("detect_stack_drift", {"StackDriftDetectionId": "d-1"}, {"StackName": "kennel-dev-app"})
    for state in ("DETECTION_IN_PROGRESS", "DETECTION_COMPLETE"):
        answer = {"StackId": "s", "StackDriftDetectionId": "d-1", "DetectionStatus": state, "Timestamp": 0}
        stubber.add_response("describe_stack_drift_detection_status", answer)
    changed = {"PropertyPath": "/MaxCapacity", "ExpectedValue": "3", "ActualValue": "30", "DifferenceType": "NOT_EQUAL"}
    drift = {
        "StackId": "s",
        "LogicalResourceId": "ScalableTarget",
        "ResourceType": "AWS::ApplicationAutoScaling::ScalableTarget",
        "StackResourceDriftStatus": "MODIFIED",
        "PropertyDifferences": [changed],
        "Timestamp": 0,
    }
    deleted = {**drift, "LogicalResourceId": "Dashboard", "StackResourceDriftStatus": "DELETED"}
    stubber.add_response("describe_stack_resource_drifts", {"StackResourceDrifts": [drift, deleted]})
    found = stacks.drift(aws, "kennel-dev-app")
    assert found == ["ScalableTarget: /MaxCapacity is 30", "Dashboard: deleted by hand"]
    assert clock.now > 0


def _will_tell_its_last_words(logs: Stubber) -> None:
    """Of one stream: a line, and nothing before it."""
    for _ in range(2):
        logs.add_response("describe_log_streams", {"logStreams": [_stream("all/i-1")]})
    event = {"timestamp": 1, "message": "manifest.json is missing in /opt/ml/model", "ingestionTime": 1}
    place = {"logGroupName": "/aws/sagemaker/Endpoints/kennel-dev", "logStreamName": "all/i-1", "limit": 20}
    logs.add_response("get_log_events", {"events": [event], "nextBackwardToken": "b/1"}, place)
    logs.add_response("get_log_events", {"events": [], "nextBackwardToken": "b/1"}, {**place, "nextToken": "b/1"})


def _stream(name: str, created: int = 0) -> dict[str, Any]:
    return {"logStreamName": name, "creationTime": created}


def test_the_last_lines_are_read_backwards_of_the_newest_streams(aws: Aws, stub: Stub) -> None:
    """An endpoint that has answered for months has gigabytes of lines; each stream that is read sends what is asked."""
    logs = stub("logs")
    named = [_stream(f"all/i-{number}", created=number) for number in range(30)]
    for _ in range(2):
        logs.add_response("describe_log_streams", {"logStreams": named})
    for number in range(25, 30):
        events = [{"timestamp": number, "message": f"{number}: {line}", "ingestionTime": 0} for line in range(20)]
        place = {"logGroupName": "group", "logStreamName": f"all/i-{number}", "limit": 20}
        logs.add_response("get_log_events", {"events": events, "nextBackwardToken": f"b/{number}"}, place)
    lines = jobs.last_lines(aws, jobs.LogSource("group", ""))
    logs.assert_no_pending_responses()
    assert lines == [f"29: {line}" for line in range(20)]


def test_an_endpoint_that_is_stuck_shows_its_containers_last_words(aws: Aws, stub: Stub) -> None:
    described = {
        "EndpointName": "kennel-dev",
        "EndpointArn": "arn:aws:sagemaker:eu-west-3:123456789012:endpoint/kennel-dev",
        "EndpointStatus": "Creating",
        "CreationTime": 0,
        "LastModifiedTime": 0,
    }
    stub("sagemaker").add_response("describe_endpoint", described, {"EndpointName": "kennel-dev"})
    stub("cloudwatch").add_response("describe_alarms", {"MetricAlarms": []})
    logs = stub("logs")
    _will_tell_its_last_words(logs)
    words = endpoint.why_it_failed(aws)
    assert "endpoint is Creating" in words
    assert "  manifest.json is missing in /opt/ml/model" in words


def test_while_an_endpoint_is_stuck_its_container_is_heard(aws: Aws, stub: Stub, clock: Clock) -> None:
    described = {
        "EndpointName": "kennel-dev",
        "EndpointArn": "arn:aws:sagemaker:eu-west-3:123456789012:endpoint/kennel-dev",
        "EndpointStatus": "Creating",
        "CreationTime": 0,
        "LastModifiedTime": 0,
    }
    sagemaker, cloudwatch, logs = stub("sagemaker"), stub("cloudwatch"), stub("logs")
    for _ in range(2):
        sagemaker.add_response("describe_endpoint", described, {"EndpointName": "kennel-dev"})
        cloudwatch.add_response("describe_alarms", {"MetricAlarms": []})
    _will_tell_its_last_words(logs)
    said: list[str] = []
    watch = endpoint.StuckWatch(aws, said.append)
    for _ in range(59):  # every five seconds, as `stacks.wait` does
        watch()
        clock.sleep(5)
    assert said == []  # an endpoint takes minutes
    clock.sleep(5)
    watch()
    watch()
    (words,) = said
    assert words.startswith("endpoint is Creating")
    assert "  manifest.json is missing in /opt/ml/model" in words


def test_an_image_that_is_not_there_is_to_be_pushed(aws: Aws, stub: Stub) -> None:
    stubber = stub("ecr")
    stubber.add_response("describe_repositories", {"repositories": [{"repositoryUri": "host/kennel"}]})
    stubber.add_client_error("describe_images", "ImageNotFoundException", "no")
    with pytest.raises(
        DeployError, match=r"image 'kennel:prod' is not in ECR of eu-west-3: \./build_and_push\.sh prod"
    ):
        images.image_uri(aws, "prod")


def test_the_wrong_account_is_refused(aws: Aws, stub: Stub) -> None:
    stub("sts").add_response("get_caller_identity", {"Account": "999999999999"})
    with pytest.raises(DeployError, match="is for account 123456789012, but your credentials are of 999999999999"):
        _ = aws.bucket


def test_without_credentials_the_way_to_them_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    answer = run("base", "apply")
    assert answer.code == 1
    assert "AWS said NoCredentials" in answer.error
    assert "aws configure" in answer.error


def test_without_a_network_it_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "AWS said Unreachable" in run("base", "apply").error


def test_a_failed_job_says_why_and_ends_with_an_error(run: Run, base: None, reply: Reply) -> None:
    why = "AlgorithmError: channel 'training' holds 1 class folder"
    failed = {"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": why}
    reply("sagemaker.DescribeTrainingJob", failed)
    answer = run("status", "dogs-1")
    assert answer.code == 1
    assert "training dogs-1: Failed" in answer.output
    assert f"failure: {why}" in answer.output
