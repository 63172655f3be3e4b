"""A bucket that tells the function of new photos: one entry of ours among the bucket's notifications."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy import stacks
from deploy.aws import Aws
from deploy.errors import DeployError


def entry(aws: Aws, prefix: str) -> dict[str, Any]:
    """Ours, as S3 writes it: every new object whose key starts with `prefix` goes to the alias `live`."""
    rules = [{"Name": "prefix", "Value": prefix}]
    return {
        "Id": aws.profile.prefix,
        "LambdaFunctionArn": aws.function_arn,
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": rules}},
    }


def current(aws: Aws, bucket: str) -> dict[str, Any] | None:
    """Our entry in the bucket, or nothing."""
    entries = _configuration(aws, bucket).get("LambdaFunctionConfigurations", [])
    return next((one for one in entries if one.get("Id") == aws.profile.prefix), None)


def put(aws: Aws, bucket: str, ours: dict[str, Any] | None) -> None:
    """Set our entry, or take it away; S3 knows only all of a bucket's entries, so the others are sent with it."""
    configuration = _configuration(aws, bucket)
    others = [
        one for one in configuration.get("LambdaFunctionConfigurations", []) if one.get("Id") != aws.profile.prefix
    ]
    configuration["LambdaFunctionConfigurations"] = [*others, *([ours] if ours else [])]
    aws.call("s3", "put_bucket_notification_configuration", Bucket=bucket, NotificationConfiguration=configuration)


def require_function(aws: Aws, bucket: str) -> None:
    """Raise where no function would answer: S3 would refuse the entry with less of a reason."""
    if stacks.describe(aws, aws.profile.app_stack) is None or not aws.profile.function.enabled:
        raise DeployError("there is no function to notify: `endpoint apply` with function.enabled = true makes it")
    if bucket not in aws.profile.function.allowed_buckets:
        raise DeployError(
            f"the function may not read bucket '{bucket}': add it to function.allowed_buckets of the profile, "
            "then `endpoint apply`"
        )


def notifying(aws: Aws) -> list[str]:
    """The buckets of the profile that have our entry."""
    return [bucket for bucket in aws.profile.function.allowed_buckets if current(aws, bucket)]


def _configuration(aws: Aws, bucket: str) -> dict[str, Any]:
    """All entries of the bucket, as they are sent to S3; none where the bucket is gone."""
    answer = aws.found("s3", "get_bucket_notification_configuration", "NoSuchBucket", Bucket=bucket) or {}
    configuration = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    for rule in _rules(configuration):
        # S3 answers "Prefix" where "prefix" was sent, and knows only that (https://github.com/aws/aws-sdk/issues/389).
        rule["Name"] = rule["Name"].lower()
    return configuration


def _rules(configuration: dict[str, Any]) -> Iterator[dict[str, str]]:
    for kind in ("Topic", "Queue", "LambdaFunction"):
        for one in configuration.get(f"{kind}Configurations", []):
            yield from one.get("Filter", {}).get("Key", {}).get("FilterRules", [])
