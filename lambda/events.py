"""Lambda's events, told apart and read; what a request then asks for is read in `request`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_plus

from errors import bad_request, unsupported

JSON: Final = "application/json"
PNG: Final = "image/png"
# A synchronous invocation takes and gives at most 6 MB (developer guide, "Lambda quotas"), in which a photo is base64
# text; the rest of an event (headers, names of fields) gets 64 KB.
PAYLOAD_BYTES: Final = 6 * 1024 * 1024
INLINE_BYTES: Final = (PAYLOAD_BYTES - 65_536) * 3 // 4


@dataclass(frozen=True, kw_only=True)
class S3Object:
    bucket: str
    key: str
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A proxy event of API Gateway (REST, HTTP) or of a function URL; names of headers are in lower case."""

    method: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


def is_s3(event: Any) -> bool:
    """Whether an event is a notification of a bucket (or the test that S3 sends when one is set up)."""
    if not isinstance(event, dict):
        return False
    records = event.get("Records")
    if isinstance(records, list) and records:
        return all(isinstance(record, dict) and record.get("eventSource") == "aws:s3" for record in records)
    return event.get("Service") == "Amazon S3" and event.get("Event") == "s3:TestEvent"


def is_http(event: Any) -> bool:
    """Whether an event is a proxy event, of payload format 1.0 or 2.0."""
    if not isinstance(event, dict) or not isinstance(event.get("requestContext"), dict):
        return False
    has_method = isinstance(event.get("httpMethod"), str) or isinstance(event["requestContext"].get("http"), dict)
    kinds = {"headers": dict, "queryStringParameters": dict, "body": str}
    return has_method and all(isinstance(event.get(name) or kind(), kind) for name, kind in kinds.items())


def new_objects(event: Mapping[str, Any]) -> list[S3Object]:
    """The objects that a notification tells were created; keys arrive URL-encoded, with + for a space."""
    return [
        S3Object(
            bucket=record["s3"]["bucket"]["name"],
            key=unquote_plus(record["s3"]["object"]["key"]),
            version=record["s3"]["object"].get("versionId"),
        )
        for record in event.get("Records", [])
        if record["eventName"].startswith("ObjectCreated:")
    ]


def http_headers(event: Mapping[str, Any]) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}


def http_request(event: Mapping[str, Any]) -> HttpRequest:
    """Read a proxy event. Raises Refusal (400, 415) for a body that did not survive its way."""
    return HttpRequest(
        method=_method(event).upper(),
        headers=http_headers(event),
        query=event.get("queryStringParameters") or {},
        body=_body(event),
    )


def _method(event: Mapping[str, Any]) -> str:
    method = event.get("httpMethod")
    return method if isinstance(method, str) else str(event["requestContext"]["http"].get("method"))


def _body(event: Mapping[str, Any]) -> bytes:
    text = event.get("body") or ""
    if event.get("isBase64Encoded"):
        return decoded_base64(text, "the body")
    if "\ufffd" in text:
        raise unsupported(
            "the body was binary, and the API in front of this function turned it into text, which destroyed it; "
            "set the API's binary media types to */*, or send the photo as base64 in JSON"
        )
    return str(text).encode(errors="replace")


def decoded_base64(text: str, name: str) -> bytes:
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{name} is not base64: {str(error)[:200]}") from error
