"""What was applied, kept in the bucket so that it can be applied again."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.stacks import Stack


def record(aws: Aws, stack: Stack) -> None:
    """Keep what was applied; the newest release is what stands."""
    content = {"name": stack.name, "template": stack.template, "parameters": dict(stack.parameters)}
    key = f"{_prefix(stack.name)}{len(keys(aws, stack.name)):06d}.json"
    aws.call("s3", "put_object", Bucket=aws.bucket, Key=key, Body=json.dumps(content).encode())


def keys(aws: Aws, name: str) -> list[str]:
    entries = aws.pages("s3", "list_objects_v2", "Contents", Bucket=aws.bucket, Prefix=_prefix(name))
    return sorted(entry["Key"] for entry in entries)


def before(aws: Aws, name: str, *, current: Mapping[str, str]) -> Stack:
    """What was applied before that which stands was applied first (`current` also holds defaults).

    First, because going back applies a release again: a second way back is to lead further back, and not to the release
    that was left. Raises DeployError without one.
    """
    earlier = None
    for key in keys(aws, name):
        body = aws.call("s3", "get_object", Bucket=aws.bucket, Key=key)["Body"].read()
        release = Stack(**json.loads(body))
        if release.parameters.items() <= current.items():
            break
        earlier = release
    if earlier is None:
        raise DeployError(
            f"stack '{name}' has no earlier release to go back to: `endpoint apply` takes any model and image"
        )
    return earlier


def _prefix(name: str) -> str:
    return f"releases/{name}/"
