"""What is too open or left over in our stacks: roles, policies, buckets. Collected first, judged by pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from deploy.aws import Aws

_UNUSED_DAYS = 90
# Actions that know no resources: their "*" is the only way to write them (Service Authorization Reference).
WITHOUT_RESOURCE = frozenset(
    {
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "xray:PutTelemetryRecords",
        "xray:PutTraceSegments",
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcs",
    }
)


@dataclass(frozen=True)
class Problem:
    where: str
    what: str
    remedy: str


@dataclass(frozen=True)
class RoleFacts:
    """A role as IAM describes it. `policies`: name -> document."""

    name: str
    trusted: tuple[str, ...]
    attached: tuple[str, ...]
    policies: dict[str, dict[str, Any]]
    made: datetime
    last_used: datetime | None


def examine(aws: Aws, *, now: datetime | None = None) -> list[Problem]:
    """Everything of this profile's names, in its stacks or left over from them."""
    moment = now or datetime.now(UTC)
    roles = [_role(aws, entry) for entry in _own_roles(aws)]
    in_use = {entry["Role"].rsplit("/", 1)[-1] for entry in aws.pages("lambda", "list_functions", "Functions")}
    problems = [problem for role in roles for problem in judge_role(role, functions_roles=in_use, now=moment)]
    return problems + [problem for bucket in _own_buckets(aws) for problem in _judge_bucket(aws, bucket)]


def judge_role(role: RoleFacts, *, functions_roles: set[str], now: datetime) -> list[Problem]:
    """FullAccess, wildcards, no use for 90 days, a function that is gone."""
    where = f"role {role.name}"
    problems = [
        Problem(where, f"carries {policy}", "detach it; the stack's own policy names what is needed")
        for policy in role.attached
        if "FullAccess" in policy or policy.endswith("/AdministratorAccess")
    ]
    for name, document in role.policies.items():
        problems += [Problem(f"{where}, policy {name}", words, "name the resource") for words in judge_policy(document)]
    idle = now - (role.last_used or role.made)
    if idle > timedelta(days=_UNUSED_DAYS):
        problems.append(Problem(where, f"was not used for {idle.days} days", "delete it with its stack"))
    if "lambda.amazonaws.com" in role.trusted and role.name not in functions_roles:
        problems.append(Problem(where, "is a Lambda role that no function uses", "delete it"))
    return problems


def judge_policy(document: dict[str, Any]) -> list[str]:
    """The statements that allow more than they name."""
    problems = []
    for statement in as_list(document.get("Statement")):
        if statement.get("Effect") != "Allow":
            continue
        actions, resources = as_list(statement.get("Action")), as_list(statement.get("Resource"))
        if wide := [action for action in actions if "*" in action]:
            problems.append(f"allows {', '.join(wide)}")
        nameable = [action for action in actions if action not in WITHOUT_RESOURCE]
        if nameable and (every := [resource for resource in resources if _names_nothing(resource)]):
            problems.append(f"allows {', '.join(nameable)} on every resource ({', '.join(every)})")
        if "NotAction" in statement or "NotResource" in statement:
            problems.append("allows everything but a list (NotAction, NotResource)")
    return problems


def _names_nothing(resource: Any) -> bool:
    """`*`, and ARNs such as arn:aws:s3:::* and arn:aws:s3:::*/*, whose name is nothing but wildcards."""
    name = str(resource).split(":", 5)[-1]
    return not name.strip("*/")


def as_list(value: Any) -> list[Any]:
    """IAM writes one of a thing without its list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _own_roles(aws: Aws) -> Iterable[dict[str, Any]]:
    prefix = f"{aws.profile.prefix}-"
    return (role for role in aws.pages("iam", "list_roles", "Roles") if role["RoleName"].startswith(prefix))


def _role(aws: Aws, entry: dict[str, Any]) -> RoleFacts:
    name = entry["RoleName"]
    full = aws.call("iam", "get_role", RoleName=name)["Role"]
    inline = aws.pages("iam", "list_role_policies", "PolicyNames", RoleName=name)
    policies = {
        policy: aws.call("iam", "get_role_policy", RoleName=name, PolicyName=policy)["PolicyDocument"]
        for policy in inline
    }
    attached = list(aws.pages("iam", "list_attached_role_policies", "AttachedPolicies", RoleName=name))
    for policy in attached:
        # AWS's own managed policies are judged by their names.
        if ":aws:policy/" not in policy["PolicyArn"]:
            policies[policy["PolicyName"]] = _managed_document(aws, policy["PolicyArn"])
    trust = as_list(full["AssumeRolePolicyDocument"].get("Statement"))
    services = [service for one in trust for service in as_list(one.get("Principal", {}).get("Service"))]
    used = full.get("RoleLastUsed", {}).get("LastUsedDate")
    return RoleFacts(
        name, tuple(services), tuple(one["PolicyArn"] for one in attached), policies, full["CreateDate"], used
    )


def _managed_document(aws: Aws, arn: str) -> dict[str, Any]:
    version = aws.call("iam", "get_policy", PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = aws.call("iam", "get_policy_version", PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return dict(document)


def _own_buckets(aws: Aws) -> list[str]:
    prefix = f"{aws.profile.prefix}-"
    return [one["Name"] for one in aws.call("s3", "list_buckets")["Buckets"] if one["Name"].startswith(prefix)]


def _judge_bucket(aws: Aws, bucket: str) -> list[Problem]:
    where, problems = f"bucket {bucket}", []
    blocked = aws.found("s3", "get_public_access_block", "NoSuchPublicAccessBlockConfiguration", Bucket=bucket)
    settings = blocked["PublicAccessBlockConfiguration"] if blocked else {}
    if not settings or not all(settings.values()):
        problems.append(Problem(where, "does not block public access", "`base apply` mends it"))
    policy = aws.found("s3", "get_bucket_policy_status", "NoSuchBucketPolicy", Bucket=bucket)
    if policy and policy["PolicyStatus"]["IsPublic"]:
        problems.append(Problem(where, "has a policy that makes it public", "`base apply` mends it"))
    return problems
