"""`audit`: our own stack is clean, and every planted fault is found."""

from __future__ import annotations

import ast
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from deploy.audit import RoleFacts, judge_policy, judge_role
from tests.aws.conftest import BUCKET, Run, Sent

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def _trust(service: str) -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def stack(base: None, sent: Sent) -> None:
    """The base stack. moto's CloudFormation keeps an inline policy as Python writes it; here it becomes JSON."""
    iam: Any = boto3.client("iam")
    for role in iam.list_roles()["Roles"]:
        for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
            written = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
            policy = json.dumps(ast.literal_eval(written))
            iam.put_role_policy(RoleName=role["RoleName"], PolicyName=name, PolicyDocument=policy)
    sent.requests.clear()


def test_what_the_base_stack_makes_is_clean(run: Run, stack: None, sent: Sent) -> None:
    answer = run("audit")
    assert (answer.code, answer.error) == (0, "")
    assert "nothing is too open, nothing is left over" in answer.output
    assert sent.writes == []


def test_planted_faults_are_found(run: Run, stack: None) -> None:
    iam: Any = boto3.client("iam")
    full = iam.create_policy(
        PolicyName="AmazonSageMakerFullAccess",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [_allow("sagemaker:*", "*")]}),
    )["Policy"]["Arn"]
    iam.attach_role_policy(RoleName="kennel-dev-endpoint", PolicyArn=full)
    iam.create_role(RoleName="kennel-dev-old-function", AssumeRolePolicyDocument=_trust("lambda.amazonaws.com"))
    boto3.client("s3").delete_public_access_block(Bucket=BUCKET)
    answer = run("audit")
    assert answer.code == 1
    for words in (
        "role kennel-dev-endpoint",
        "carries arn:aws:iam::123456789012:policy/AmazonSageMakerFullAccess",
        "allows sagemaker:*",
        "is a Lambda role that no function uses",
        "does not block public access",
    ):
        assert words in answer.output, words


def test_roles_of_others_are_not_our_business(run: Run, stack: None) -> None:
    iam: Any = boto3.client("iam")
    iam.create_role(RoleName="another-teams-role", AssumeRolePolicyDocument=_trust("lambda.amazonaws.com"))
    assert run("audit").code == 0


def _allow(action: Any, resource: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource}


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (_allow("*", "*"), "allows *"),
        (_allow("s3:*", "arn:aws:s3:::b"), "allows s3:*"),
        (_allow("s3:Get*", "arn:aws:s3:::b/*"), "allows s3:Get*"),
        (_allow("s3:GetObject", "arn:aws:s3:::*/*"), "allows s3:GetObject on every resource (arn:aws:s3:::*/*)"),
        (_allow(["s3:GetObject", "ecr:GetAuthorizationToken"], "*"), "allows s3:GetObject on every resource"),
        ({"Effect": "Allow", "NotAction": "iam:*", "Resource": "arn:aws:s3:::b"}, "everything but a list"),
    ],
)
def test_a_wide_statement_is_named(statement: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in judge_policy({"Statement": [statement]}))


@pytest.mark.parametrize(
    "statement",
    [
        _allow("xray:PutTraceSegments", "*"),
        _allow("s3:GetObject", "arn:aws:s3:::b/*"),
        _allow("logs:PutLogEvents", "arn:aws:logs:eu-west-3:123456789012:log-group:/aws/x:*"),
        {"Effect": "Deny", "Action": "s3:*", "Resource": "*"},
    ],
)
def test_a_narrow_statement_is_left_alone(statement: dict[str, Any]) -> None:
    assert judge_policy({"Statement": statement}) == []


def _role(*, used_days_ago: int | None, made_days_ago: int = 365) -> RoleFacts:
    used = None if used_days_ago is None else NOW - timedelta(days=used_days_ago)
    return RoleFacts("kennel-dev-ec2", ("ec2.amazonaws.com",), (), {}, NOW - timedelta(days=made_days_ago), used)


@pytest.mark.parametrize(("role", "idle"), [
    (_role(used_days_ago=89), False),
    (_role(used_days_ago=91), True),
    (_role(used_days_ago=None), True),
    (_role(used_days_ago=None, made_days_ago=3), False),
])  # fmt: skip
def test_a_role_that_nobody_uses_is_named(role: RoleFacts, idle: bool) -> None:
    problems = judge_role(role, functions_roles=set(), now=NOW)
    assert any("was not used" in problem.what for problem in problems) is idle
