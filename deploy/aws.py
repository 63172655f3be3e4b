"""All that this side knows of boto3: one session, calls whose errors are ours, pages, and file transfers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import boto3
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from deploy.errors import AwsError, DeployError
from deploy.profile import Profile

# A role made a moment ago is not known everywhere yet; IAM's documentation speaks of seconds.
ROLE_RETRY_S = 60
_ROLE_NOT_READY = (
    "could not assume role",
    "cannot be assumed",
    "not authorized to perform: sts:assumerole",
    "invalid iam instance profile",
)


class Aws:
    """One account and region, as a profile names them."""

    def __init__(
        self,
        profile: Profile,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = profile
        self.sleep, self.clock = sleep, clock
        self._clients: dict[str, Any] = {}

    @cached_property
    def _session(self) -> Any:
        with _translated("reading your AWS profile"):
            return cast(Any, boto3).Session(
                region_name=self.profile.region, profile_name=self.profile.aws_profile or None
            )

    @property
    def session(self) -> Any:
        return self._session

    def client(self, service: str) -> Any:
        """The one client of a service: standard retries, time-outs that fit a 60 s invocation, many threads."""
        if service not in self._clients:
            config = Config(
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=10,
                read_timeout=70,
                max_pool_connections=64,
                user_agent_extra="kennel",
            )
            with _translated(f"preparing to call {service}"):
                self._clients[service] = self._session.client(service, config=config)
        return self._clients[service]

    def call(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        """One request; AwsError where AWS refuses it."""
        with _translated(f"{service} {operation}{_subject(request)}"):
            return cast(dict[str, Any], getattr(self.client(service), operation)(**request))

    def call_with_new_role(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        """As `call`, but wait up to ROLE_RETRY_S for a role that is too new to be assumed."""
        deadline = self.clock() + ROLE_RETRY_S
        while True:
            try:
                return self.call(service, operation, **request)
            except AwsError as error:
                if not any(words in error.said.lower() for words in _ROLE_NOT_READY) or self.clock() > deadline:
                    raise
            self.sleep(5)

    def found(self, service: str, operation: str, *absent: str, **request: Any) -> dict[str, Any] | None:
        """As `call`, but nothing where AWS's error code is one of `absent`."""
        try:
            return self.call(service, operation, **request)
        except AwsError as error:
            if error.aws_code in absent:
                return None
            raise

    def pages(self, service: str, operation: str, member: str, **request: Any) -> Iterator[Any]:
        """The entries of `member` over all pages."""
        with _translated(f"{service} {operation}{_subject(request)}"):
            for page in self.client(service).get_paginator(operation).paginate(**request):
                yield from page.get(member, [])

    @cached_property
    def account(self) -> str:
        """The account's number; refused where the profile names another."""
        found = str(self.call("sts", "get_caller_identity")["Account"])
        if self.profile.account not in ("", found):
            raise DeployError(
                f"profile '{self.profile.stage}' is for account {self.profile.account}, but your credentials are of "
                f"{found}: set `aws_profile` in deploy/profiles.toml, or AWS_PROFILE"
            )
        return found

    @cached_property
    def partition(self) -> str:
        return str(self._session.get_partition_for_region(self.profile.region))

    @property
    def bucket(self) -> str:
        """The base stack's bucket (deploy/templates/base.yaml gives it this name)."""
        profile = self.profile
        return f"{profile.name}-{profile.stage}-{self.account}-{profile.region}"

    def role_arn(self, purpose: str) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{self.profile.prefix}-{purpose}"

    @property
    def function_name(self) -> str:
        """deploy/templates/app.yaml gives it this name."""
        return f"{self.profile.prefix}-classify"

    @property
    def function_arn(self) -> str:
        """The alias that callers use (deploy/templates/app.yaml gives it this name)."""
        return f"arn:{self.partition}:lambda:{self.profile.region}:{self.account}:function:{self.function_name}:live"

    def upload(self, path: Path, key: str, *, sha256: str, progress: Callable[[int], None] | None = None) -> None:
        """Put a file into the bucket; S3 checks every part by SHA-256, and the whole digest is kept beside it."""
        config = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4)
        with (
            _translated(f"uploading {path} to s3://{self.bucket}/{key}"),
            # Not `upload_file`: its own error replaces AWS's, and loses it where the manager's end raises that again.
            create_transfer_manager(self.client("s3"), config) as transfers,
        ):
            transfers.upload(
                str(path),
                self.bucket,
                key,
                extra_args={"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": sha256}},
                subscribers=[ProgressCallbackInvoker(progress)] if progress else [],
            ).result()


def _subject(request: dict[str, Any]) -> str:
    """What a request is about, for messages: its first name."""
    named = (value for key, value in request.items() if isinstance(value, str) and key.endswith(("Name", "Bucket")))
    return next((f" ({value})" for value in named), "")


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        detail = error.response.get("Error", {})
        said = detail.get("Message") or str(error)
        raise AwsError(where=where, code=detail.get("Code", "Unknown"), said=said) from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound, TokenRetrievalError) as error:
        raise AwsError(where=where, code="NoCredentials", said=str(error)) from error
    except (BotoConnectionError, HTTPClientError) as error:
        raise AwsError(where=where, code="Unreachable", said=str(error)) from error
    except ParamValidationError as error:
        raise DeployError(f"{where}: {error}") from error
    except BotoCoreError as error:
        raise AwsError(where=where, code=type(error).__name__, said=str(error)) from error
