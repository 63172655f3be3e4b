"""AWS, as this function uses it: the SageMaker endpoint, and photos and results in S3. The one file with its library.

The clients are boto3's own, made by botocore, which boto3 hands every call to: `import boto3` would load S3's parallel
transfers too, and take a third longer to start.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)
from botocore.loaders import Loader
from botocore.session import Session, get_session

from errors import Refusal, timed_out, too_large
from events import S3Object
from photos import Photo

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_sagemaker_runtime.type_defs import InvokeEndpointInputTypeDef, InvokeEndpointOutputTypeDef

CONNECT_TIMEOUT_S: Final = 3
_SHOWS_AT_ONCE_S: Final = 1
_CHUNK_BYTES: Final = 65_536
_RETRY_AFTER_S: Final = {"throttled": 1, "overloaded": 2, "model_not_ready": 10}


@cache
def _session() -> Session:
    """Credentials, region and boto3's data, for all clients."""
    session = get_session()
    session.register_component("data_loader", _Data())
    return session


class _Data(Loader):
    """boto3's data, without a look into the folders of all of AWS's services for whether ours exist."""

    def list_available_services(self, type_name: str) -> list[str]:
        return ["s3", "sagemaker-runtime"]


@dataclass(frozen=True)
class Answer:
    body: bytes
    content_type: str


class Endpoint(Protocol):
    """Whatever classifies photos: a SageMaker endpoint, or (`make page`) a container on this machine."""

    def invoke(self, photo: Photo, *, accept: str, attributes: str, request_id: str) -> Answer:
        """Raises Refusal."""


class SageMakerEndpoint:
    """One endpoint, through one client that lives as long as the function's environment."""

    def __init__(self, name: str, *, read_timeout_s: float) -> None:
        self._name = name
        # One attempt: what is slow must not be asked for again, and a throttled caller is told to come back.
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            retries={"total_max_attempts": 1},
            tcp_keepalive=True,
        )
        self._client = cast("SageMakerRuntimeClient", _session().create_client("sagemaker-runtime", config=config))

    def invoke(self, photo: Photo, *, accept: str, attributes: str, request_id: str) -> Answer:
        """Raises Refusal: the endpoint's own 4xx, 413, 429, 500, 502, 503 or 504."""
        call: InvokeEndpointInputTypeDef = {
            "EndpointName": self._name,
            "Body": photo.data,
            "ContentType": photo.content_type,
            "Accept": accept,
            "InferenceId": request_id,
        }
        if attributes:
            call["CustomAttributes"] = attributes
        try:
            answer = self._invoke(call)
            return Answer(answer["Body"].read(), answer["ContentType"])
        except ClientError as error:
            raise _refusal(error) from error
        except (ConnectTimeoutError, ReadTimeoutError) as error:
            raise _timed_out() from error
        except (HTTPClientError, EndpointConnectionError, IncompleteReadError) as error:
            raise _unreachable() from error
        except BotoCoreError as error:  # No credentials, no region.
            raise _misconfigured() from error

    def _invoke(self, call: InvokeEndpointInputTypeDef) -> InvokeEndpointOutputTypeDef:
        started = time.monotonic()
        try:
            return self._client.invoke_endpoint(**call)
        except ConnectionClosedError:
            # A kept connection dies unnoticed while Lambda freezes the environment, and that shows at once. One that
            # breaks off later may be the endpoint's doing, and the time for a second attempt is gone.
            if time.monotonic() - started > _SHOWS_AT_ONCE_S:
                raise
            return self._client.invoke_endpoint(**call)


def refusal_of_model(status: int, body: str) -> Refusal:
    """What a caller is told of an error that the container itself answered with.

    Its 4xx are the caller's own; of its 5xx, overload (503) and time-out (504) say what to do, others do not.
    """
    if 400 <= status < 500:
        code, message = _container_error(body)
        return Refusal(status, code, message, retry_after_s=_RETRY_AFTER_S["throttled"] if status == 429 else None)
    if status == 503:
        return _later(503, "overloaded", "the endpoint has more requests than it can answer; try again")
    # SageMaker writes "server error (0) … timed out" of a container that took longer than its 60 s.
    if status == 504 or "timed out" in body:
        return _timed_out()
    return Refusal(502, "endpoint_failed", "the endpoint failed at this photo")


def _container_error(body: str) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "bad_request", "the endpoint cannot answer this request"


def _refusal(error: ClientError) -> Refusal:
    response: Mapping[str, Any] = error.response
    code = response["Error"]["Code"]
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "ModelError":
        said = response.get("OriginalMessage") or response["Error"].get("Message", "")
        return refusal_of_model(int(response.get("OriginalStatusCode", 0)), said)
    if code == "ModelNotReadyException":
        return _later(503, "model_not_ready", "the model is still being loaded; try again")
    if status == 429 or code in ("ThrottlingException", "TooManyRequestsException"):
        return _later(429, "throttled", "the endpoint is asked more often than it may be; try again")
    if code == "ServiceUnavailable" or status == 503:
        return _later(503, "overloaded", "the endpoint is not available at the moment; try again")
    if status == 413:
        return too_large("the photo has more bytes than the endpoint takes; scale it down")
    if status >= 500:
        return Refusal(502, "endpoint_failed", "the endpoint failed at this photo")
    return _misconfigured()


def _later(status: int, code: str, message: str) -> Refusal:
    return Refusal(status, code, message, retry_after_s=_RETRY_AFTER_S[code])


def _timed_out() -> Refusal:
    return timed_out("endpoint_timeout", "the endpoint did not answer in time")


def _unreachable() -> Refusal:
    return Refusal(502, "endpoint_unreachable", "the endpoint cannot be reached")


def _misconfigured() -> Refusal:
    message = "this function cannot use its endpoint or bucket; its log has the reason under this request_id"
    return Refusal(500, "misconfigured", message)


class Buckets:
    """S3, within the allowed buckets alone; `timeout_s` is for a whole object, read or written."""

    def __init__(self, allowed: frozenset[str], *, timeout_s: float) -> None:
        self._allowed = allowed
        self._timeout_s = timeout_s
        if allowed:
            # Two attempts that fail by time-out, one after the other, still end in time.
            config = Config(
                connect_timeout=timeout_s * 0.1,
                read_timeout=timeout_s * 0.3,
                retries={"total_max_attempts": 2, "mode": "standard"},
            )
            self._client = cast("S3Client", _session().create_client("s3", config=config))

    def read(self, item: S3Object, *, max_bytes: int) -> bytes:
        """Raises Refusal: 403 for a bucket that is not allowed, 404, 413, 502, 503, 504."""
        self._check(item.bucket)
        deadline = time.monotonic() + self._timeout_s
        call: GetObjectRequestTypeDef = {"Bucket": item.bucket, "Key": item.key}
        if item.version:
            call["VersionId"] = item.version
        try:
            found = self._client.get_object(**call)
            # Not `with body`: that gives the stream beneath, whose errors are not boto3's.
            with closing(found["Body"]) as body:
                if found["ContentLength"] > max_bytes:
                    raise too_large(f"the object has {found['ContentLength']:,} bytes; at most {max_bytes:,} are taken")
                return _all_of(body, deadline)
        except (ClientError, BotoCoreError) as error:
            raise _refusal_of_s3(error) from error

    def write_json(self, item: S3Object, value: Mapping[str, Any]) -> None:
        """Raises Refusal: 403, 404, 502, 503, 504."""
        self._check(item.bucket)
        body = json.dumps(value, ensure_ascii=False).encode()
        try:
            self._client.put_object(Bucket=item.bucket, Key=item.key, Body=body, ContentType="application/json")
        except (ClientError, BotoCoreError) as error:
            raise _refusal_of_s3(error) from error

    def _check(self, bucket: str) -> None:
        if bucket not in self._allowed:
            raise Refusal(
                403, "bucket_not_allowed", f"the bucket {bucket!r} is not among those that photos are read from"
            )


def _all_of(body: StreamingBody, deadline: float) -> bytes:
    buffer = io.BytesIO()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        if time.monotonic() > deadline:
            raise _bucket_timed_out()
        buffer.write(chunk)
    return buffer.getvalue()


def _bucket_timed_out() -> Refusal:
    return timed_out("bucket_timeout", "the bucket did not give or take the object in time")


def _refusal_of_s3(error: ClientError | BotoCoreError) -> Refusal:
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return _bucket_timed_out()
    if not isinstance(error, ClientError):
        return Refusal(502, "bucket_unreachable", "the bucket cannot be reached at the moment")
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    # Without the right to list a bucket, S3 answers 403 for a key that is missing.
    if status in (403, 404):
        return Refusal(404, "object_not_found", "the object does not exist, or this function may not use it")
    if status == 503:
        return _later(503, "overloaded", "the bucket is asked too often at the moment; try again")
    return Refusal(502, "bucket_unreachable", "the bucket cannot be used at the moment")
