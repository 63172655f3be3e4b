"""The two templates: lint, least privilege, and what the design promises of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import lambda_zip
from deploy.audit import WITHOUT_RESOURCE, as_list, judge_policy
from deploy.stacks import TEMPLATES, read_template
from tests.aws.cloudformation import load
from tests.aws.tools import tool

NAMES = ("base", "app")
VALUES = {
    "Name": "kennel",
    "Stage": "dev",
    "Bucket": "kennel-dev-bucket",
    "RepositoryName": "kennel",
    "AWS::AccountId": "123456789012",
    "AWS::Region": "eu-west-3",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "ReadableObjects": ["arn:aws:s3:::photos/*"],
    "WritableObjects": ["arn:aws:s3:::photos/results/*"],
}
ATTRIBUTES = {
    "Bucket.Arn": "arn:aws:s3:::kennel-dev-bucket",
    "Ec2Logs.Arn": "arn:aws:logs:eu-west-3:123456789012:log-group:/kennel/dev/ec2:*",
    "FunctionLogs.Arn": "arn:aws:logs:eu-west-3:123456789012:log-group:/aws/lambda/kennel-dev-classify:*",
    "FailedCalls.Arn": "arn:aws:sqs:eu-west-3:123456789012:kennel-dev-failed",
}
# A resource is named where it carries our name, the user's bucket's, or a place that SageMaker or EC2 prescribes.
NAMED = re.compile(r"kennel|photos/|log-group:/aws/sagemaker/TrainingJobs:|:ec2:eu-west-3:123456789012:[a-z-]+/\*$")
# All that any policy may do; a test holds each of them to it, so that a wider one has to be written down here.
ALLOWED = {
    "TrainingRole": {
        "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject",
        "logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents",
    },
    "EndpointRole": {
        "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload",
        "logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents",
    },
    "Ec2Role": {
        "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject",
        "logs:CreateLogStream", "logs:PutLogEvents",
    },
    "FunctionRole": {
        "sagemaker:InvokeEndpoint", "logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage",
        "s3:GetObject", "s3:PutObject", "xray:PutTelemetryRecords", "xray:PutTraceSegments",
    },
    "PullImage": {
        "ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
    },
    "SageMakerMetrics": {"cloudwatch:PutMetricData"},
    "TrainingInVpc": {
        "ec2:DescribeDhcpOptions", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets", "ec2:DescribeVpcs", "ec2:CreateNetworkInterface",
        "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface", "ec2:DeleteNetworkInterfacePermission",
    },
}  # fmt: skip


def _resolved(node: Any) -> Any:
    """A policy with its Ref, Sub, GetAtt and If carried out (every feature switched on)."""
    if isinstance(node, list):
        return [_resolved(one) for one in node]
    if not isinstance(node, dict):
        return node
    if "Ref" in node:
        return VALUES.get(node["Ref"], node["Ref"])
    if "Fn::GetAtt" in node:
        return ATTRIBUTES[".".join(node["Fn::GetAtt"])]
    if "Fn::If" in node:
        return _resolved(node["Fn::If"][1])
    if "Fn::Sub" in node:
        text = node["Fn::Sub"]
        for name, value in {**VALUES, **ATTRIBUTES}.items():
            text = text.replace(f"${{{name}}}", str(value))
        assert "${" not in text
        return text
    return {key: _resolved(value) for key, value in node.items()}


def _policies() -> Iterator[tuple[str, dict[str, Any]]]:
    """(logical name, document) of every identity policy of both templates."""
    for name in NAMES:
        for logical, resource in load(read_template(name))["Resources"].items():
            properties = resource.get("Properties", {})
            if resource["Type"] == "AWS::IAM::ManagedPolicy":
                yield logical, _resolved(properties["PolicyDocument"])
            for inline in properties.get("Policies", []) if resource["Type"] == "AWS::IAM::Role" else []:
                yield logical, _resolved(inline["PolicyDocument"])


POLICIES = [pytest.param(logical, document, id=logical) for logical, document in _policies()]


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return {name: load(read_template(name))["Resources"] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_cfn_lint_finds_nothing(name: str) -> None:
    program = Path(sys.executable).parent / "cfn-lint"
    done = subprocess.run([program, TEMPLATES / f"{name}.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_sam_validates(name: str, aws_env: dict[str, str]) -> None:
    program = tool(".venv-sam", "sam")
    command: list[str | Path] = [program, "validate", "--lint", "--template", TEMPLATES / f"{name}.yaml"]
    env = {**aws_env, "SAM_CLI_TELEMETRY": "0", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def _lint(policies: dict[str, Any]) -> dict[str, list[str]]:
    command: list[str | Path] = [sys.executable, Path(__file__).with_name("lint_policies.py")]
    done = subprocess.run(command, input=json.dumps(policies), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_parliament_finds_nothing() -> None:
    policies = dict(_policies())
    assert _lint(policies) == {name: [] for name in policies}


def test_parliament_would_find_something() -> None:
    statement = {"Effect": "Allow", "Action": "s3:GetObjekt", "Resource": "arn:aws:s3:::kennel"}
    assert _lint({"planted": {"Version": "2012-10-17", "Statement": [statement]}})["planted"]


@pytest.mark.parametrize(("logical", "document"), POLICIES)
def test_no_statement_is_wider_than_listed(logical: str, document: dict[str, Any]) -> None:
    assert judge_policy(document) == []
    actions = {action for statement in document["Statement"] for action in as_list(statement["Action"])}
    assert actions == ALLOWED[logical]
    for statement in document["Statement"]:
        resources = as_list(statement["Resource"])
        if "*" in resources:
            assert resources == ["*"]
            assert set(as_list(statement["Action"])) <= WITHOUT_RESOURCE
        else:
            assert [resource for resource in resources if not NAMED.search(resource)] == []


def test_every_policy_is_checked() -> None:
    assert {logical for logical, _ in _policies()} == set(ALLOWED)


def test_no_role_carries_a_policy_of_aws(resources: dict[str, Any]) -> None:
    for name in NAMES:
        for resource in resources[name].values():
            assert "ManagedPolicyArns" not in resource.get("Properties", {})


def test_the_roles_of_sagemaker_serve_this_account_alone(resources: dict[str, Any]) -> None:
    for role in ("TrainingRole", "EndpointRole"):
        (statement,) = resources["base"][role]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_the_bucket_is_private_encrypted_and_answers_tls_only(resources: dict[str, Any]) -> None:
    bucket = resources["base"]["Bucket"]["Properties"]
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    (statement,) = resources["base"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Deny", "s3:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert resources["base"]["Bucket"]["DeletionPolicy"] == "RetainExceptOnCreate"


def test_both_repositories_are_the_same(resources: dict[str, Any]) -> None:
    """The stack's and the one that build_and_push.sh makes, which a change set adopts."""
    script = (TEMPLATES.parents[1] / "build_and_push.sh").read_text()
    repository = resources["base"]["Repository"]["Properties"]
    filters = repository["ImageTagMutabilityExclusionFilters"]
    moving = " ".join(one["ImageTagMutabilityExclusionFilterValue"] for one in filters)
    assert f"MOVING_TAGS='{moving}'" in script
    assert f"--image-tag-mutability {repository['ImageTagMutability']}" in script
    lifecycle = next(line for line in script.splitlines() if line.startswith("readonly LIFECYCLE="))
    of_script = json.loads(lifecycle.removeprefix("readonly LIFECYCLE='").removesuffix("'"))
    assert of_script == json.loads(repository["LifecyclePolicy"]["LifecyclePolicyText"])


@pytest.fixture(scope="module")
def transformed() -> dict[str, Any]:
    return _transformed()


def _transformed(**defaults: str) -> dict[str, Any]:
    """The app template's resources after the SAM transform that CloudFormation would run."""
    python = tool(".venv-sam", "python")
    document = load(read_template("app"))
    for name, value in defaults.items():
        document["Parameters"][name]["Default"] = value
    template = json.dumps(document)
    env = {"AWS_DEFAULT_REGION": "eu-west-3", "PATH": "/usr/bin:/bin"}
    command: list[str | Path] = [python, Path(__file__).with_name("sam_transform.py")]
    done = subprocess.run(command, input=template, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["Resources"])


def test_provisioned_environments_belong_to_an_alias(resources: dict[str, Any]) -> None:
    """SAM puts both on the alias that it publishes; `transformed` shows it where SAM is installed."""
    function = resources["app"]["Function"]["Properties"]
    assert function["AutoPublishAlias"] == "live"
    assert function["ProvisionedConcurrencyConfig"]["ProvisionedConcurrentExecutions"] == {
        "Ref": "ProvisionedConcurrency"
    }


def test_callers_use_the_alias_that_has_the_provisioned_environments(transformed: dict[str, Any]) -> None:
    aliases = {name: one["Properties"] for name, one in transformed.items() if one["Type"] == "AWS::Lambda::Alias"}
    ((name, alias),) = aliases.items()
    assert alias["Name"] == "live"
    assert alias["ProvisionedConcurrencyConfig"] == {
        "ProvisionedConcurrentExecutions": {"Ref": "ProvisionedConcurrency"}
    }
    document = load(read_template("app"))
    assert document["Parameters"]["ProvisionedConcurrency"]["Default"] == 2
    assert document["Outputs"]["FunctionAlias"]["Value"] == {"Ref": name}
    assert transformed["FunctionUrlOfLive"]["Properties"]["Qualifier"] == "live"
    assert _only(transformed, "AWS::Lambda::EventInvokeConfig")["Qualifier"] == "live"
    assert alias["FunctionVersion"]["Fn::GetAtt"][1] == "Version"


def _only(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = (one["Properties"] for one in resources.values() if one["Type"] == kind)
    return dict(found)


def test_a_changed_function_gets_a_new_version_under_its_alias() -> None:
    """Settings alone too: a version is a copy, and an alias that stays on the old one has the old settings."""
    versions = [
        next(name for name, one in _transformed(FunctionDigest=digest).items() if one["Type"] == "AWS::Lambda::Version")
        for digest in ("a" * 64, "b" * 64)
    ]
    assert len(set(versions)) == 2


def test_the_function_is_capped_and_keeps_what_failed(transformed: dict[str, Any]) -> None:
    function = transformed["Function"]["Properties"]
    assert function["ReservedConcurrentExecutions"] == {"Ref": "ReservedConcurrency"}
    config = _only(transformed, "AWS::Lambda::EventInvokeConfig")
    assert config["DestinationConfig"] == {"OnFailure": {"Destination": {"Fn::GetAtt": ["FailedCalls", "Arn"]}}}


def test_scaling_goes_from_one_to_three_with_five_minutes_of_calm(resources: dict[str, Any]) -> None:
    parameters = load(read_template("app"))["Parameters"]
    assert (parameters["MinInstances"]["Default"], parameters["MaxInstances"]["Default"]) == (1, 3)
    assert (parameters["ScaleInCooldown"]["Default"], parameters["ScaleOutCooldown"]["Default"]) == (300, 300)
    policy = resources["app"]["ScalingPolicy"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    metric = policy["PredefinedMetricSpecification"]["Fn::If"][2]
    assert metric == {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    assert resources["app"]["Endpoint"]["Properties"]["RetainAllVariantProperties"]["Fn::If"][1] is True


def test_an_update_that_alarms_is_rolled_back(resources: dict[str, Any]) -> None:
    deployment = resources["app"]["Endpoint"]["Properties"]["DeploymentConfig"]["Fn::If"][1]
    alarms = [one["AlarmName"]["Ref"] for one in deployment["AutoRollbackConfiguration"]["Alarms"]]
    assert alarms == ["ServerErrorAlarm", "LatencyAlarm"]
    assert all(resources["app"][alarm]["Type"] == "AWS::CloudWatch::Alarm" for alarm in alarms)


def test_there_is_an_alarm_for_each_promise(resources: dict[str, Any]) -> None:
    alarms = [one["Properties"] for one in resources["app"].values() if one["Type"] == "AWS::CloudWatch::Alarm"]
    assert {one["MetricName"] for one in alarms} == {
        "Invocation5XXErrors",
        "ModelLatency",
        "Throttles",
        "ProvisionedConcurrencySpilloverInvocations",
        "ApproximateNumberOfMessagesVisible",
    }
    assert all(one["AlarmActions"] == [{"Ref": "Alarms"}] for one in alarms)


def test_the_dashboard_is_json(resources: dict[str, Any]) -> None:
    body = resources["app"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    widgets = json.loads(body.replace("${ScalingTarget}", "60"))["widgets"]
    assert len(widgets) == 5


def test_the_image_is_named_by_its_digest() -> None:
    pattern = load(read_template("app"))["Parameters"]["ImageUri"]["AllowedPattern"]
    assert re.fullmatch(pattern, "123456789012.dkr.ecr.eu-west-3.amazonaws.com/kennel@sha256:" + "0" * 64)
    assert not re.fullmatch(pattern, "123456789012.dkr.ecr.eu-west-3.amazonaws.com/kennel:latest")


def test_templates_fit_into_a_request() -> None:
    for name in NAMES:
        assert len(read_template(name).encode()) <= 51_200  # CreateChangeSet's TemplateBody


def test_the_zip_is_built_for_the_function_that_the_template_makes(resources: dict[str, Any]) -> None:
    function = resources["app"]["Function"]["Properties"]
    assert function["Runtime"] == lambda_zip.RUNTIME
    assert function["Architectures"] == [lambda_zip.ARCHITECTURE]
    assert function["Handler"] == lambda_zip.HANDLER
    assert function["Environment"]["Variables"]["FUNCTION_TIMEOUT_S"] == str(function["Timeout"])
