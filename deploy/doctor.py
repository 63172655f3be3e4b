"""Whether this laptop and account are ready: credentials, region, tools, limits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy import quotas, stacks
from deploy.aws import Aws
from deploy.datasets import require_private_bucket
from deploy.errors import DeployError
from deploy.programs import find_engine


@dataclass(frozen=True)
class Finding:
    what: str
    fine: bool
    words: str


def examine(aws: Aws) -> list[Finding]:
    """All checks, each on its own: one that fails does not hide another, but without credentials none can be asked."""
    here = [_checked(what, check, aws) for what, check in _HERE.items()]
    if not here[-1].fine:
        return here
    return here + [_checked(what, check, aws) for what, check in _IN_THE_ACCOUNT.items()]


def require_credentials(aws: Aws) -> None:
    """The cheapest check of all, before anything else is tried."""
    _credentials(aws)


def _checked(what: str, check: Callable[[Aws], str], aws: Aws) -> Finding:
    try:
        return Finding(what, True, check(aws))
    except DeployError as error:
        return Finding(what, False, str(error))


def _credentials(aws: Aws) -> str:
    return f"account {aws.account}, region {aws.profile.region}"


def _engine(_: Aws) -> str:
    if engine := find_engine():
        return f"{Path(engine).name} answers"
    raise DeployError("neither docker nor podman answers: build_and_push.sh, `data push` and `tune` need one of them")


def _aws_command(_: Aws) -> str:
    if found := shutil.which("aws"):
        return found
    raise DeployError("it is missing, and build_and_push.sh needs it: pip install awscli")


def _base_stack(aws: Aws) -> str:
    stack = stacks.describe(aws, aws.profile.base_stack)
    if stack is None:
        raise DeployError(f"stack '{aws.profile.base_stack}' is not there: `base apply` makes bucket and roles")
    return f"{aws.profile.base_stack} is {stack['StackStatus']}"


def _bucket(aws: Aws) -> str:
    require_private_bucket(aws)
    return f"{aws.bucket} is private"


def _training_quota(aws: Aws) -> str:
    training = aws.profile.training
    return quotas.require_sagemaker(
        aws, training.instance_type, use="training job", count=training.instances, spot=training.spot
    )


_Checks = dict[str, Callable[[Aws], str]]
_HERE: _Checks = {"container engine": _engine, "the aws command": _aws_command, "credentials": _credentials}
_IN_THE_ACCOUNT: _Checks = {
    "base stack": _base_stack,
    "bucket": _bucket,
    "quota for training": _training_quota,
    "quota for the endpoint": quotas.require_endpoint,
    "concurrency for the function": quotas.require_concurrency,
}
