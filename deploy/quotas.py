"""Quotas, asked before a job needs them: GPU instances start at zero in a new account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.aws import Aws
from deploy.errors import AwsError, DeployError
from deploy.pricing import load_prices

# EC2's own words for its families of types, by their first letters.
_FAMILIES = {"gv": "G and VT", "p": "P", "x": "X", "f": "F"}
_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
# What Lambda does not let an account reserve; a new account may have less than this in all.
_UNRESERVED = 100


def sagemaker_quota_name(instance_type: str, *, use: str, spot: bool = False) -> str:
    """Service Quotas' own words, e.g. `ml.g4dn.xlarge for spot training job usage`."""
    return f"{instance_type} for {'spot ' if spot else ''}{use} usage"


def require_sagemaker(aws: Aws, instance_type: str, *, use: str, count: int, spot: bool = False) -> str:
    """Raise where the quota is below `count`; else say what was found. `use`: training job, endpoint, ..."""
    return _require(aws, "sagemaker", sagemaker_quota_name(instance_type, use=use, spot=spot), count)


def require_ec2(aws: Aws, instance_type: str, *, spot: bool = False) -> str:
    """As `require_sagemaker`; EC2 counts vCPUs of a family of types."""
    family = next((words for letters, words in _FAMILIES.items() if instance_type[0] in letters), _STANDARD)
    name = f"All {family} Spot Instance Requests" if spot else f"Running On-Demand {family} instances"
    machine = load_prices().machine(instance_type)
    return _require(aws, "ec2", name, machine.vcpus if machine else 1)


def require_endpoint(aws: Aws) -> str:
    """As `require_sagemaker`, for all that the profile's endpoint may come to hold."""
    endpoint = aws.profile.endpoint
    if endpoint.variant == "serverless":
        return "a serverless endpoint uses no quota of instances"
    # A blue/green update holds the old fleet and the new one at the same time.
    return require_sagemaker(aws, endpoint.instance_type, use="endpoint", count=2 * endpoint.max_instances)


def require_concurrency(aws: Aws) -> str:
    """Raise where the account cannot reserve the function's concurrent calls; else say what was found."""
    function = aws.profile.function
    if not function.enabled:
        return "no function in this profile"
    try:
        free, total = _free_concurrency(aws)
    except AwsError as error:
        return f"the account's concurrency could not be read ({error.aws_code}); AWS will say if it is too low"
    if free < function.reserved_concurrency + _UNRESERVED:
        raise DeployError(
            f"{free} of the account's {total} concurrent calls are free; reserving {function.reserved_concurrency} "
            f"must leave {_UNRESERVED}: ask Service Quotas for 1,000 'Concurrent executions' of Lambda (it costs "
            "nothing), or set function.enabled = false until then"
        )
    return f"{free} concurrent calls are free; {function.reserved_concurrency} will be reserved"


def _free_concurrency(aws: Aws) -> tuple[int, int]:
    """Calls that nobody has reserved, or our function has already; and all of the account."""
    limits = aws.call("lambda", "get_account_settings")["AccountLimit"]
    found = aws.found("lambda", "get_function_concurrency", "ResourceNotFoundException", FunctionName=aws.function_name)
    ours = found or {}
    free = limits["UnreservedConcurrentExecutions"] + ours.get("ReservedConcurrentExecutions", 0)
    return free, limits["ConcurrentExecutions"]


def _require(aws: Aws, service: str, name: str, count: int) -> str:
    try:
        quota = next((entry for entry in _quotas(aws, service) if entry["QuotaName"] == name), None)
    except AwsError as error:
        return f"quota '{name}' could not be read ({error.aws_code}); AWS will say if it is too low"
    if quota is None:
        return f"quota '{name}' is not listed by Service Quotas; AWS will say if it is too low"
    if quota["Value"] < count:
        raise DeployError(
            f"quota '{name}' is {quota['Value']:g} in {aws.profile.region}; this needs {count}\n"
            f"What to do: aws service-quotas request-service-quota-increase --service-code {service} "
            f"--quota-code {quota['QuotaCode']} --desired-value {count} (answered in hours to days), "
            "or take another type (`advise`) or fewer"
        )
    return f"quota '{name}' is {quota['Value']:g}; this needs {count}"


def _quotas(aws: Aws, service: str) -> Iterator[dict[str, Any]]:
    """The account's own values, then AWS's defaults for what was never changed."""
    yield from aws.pages("service-quotas", "list_service_quotas", "Quotas", ServiceCode=service)
    yield from aws.pages("service-quotas", "list_aws_default_service_quotas", "Quotas", ServiceCode=service)
