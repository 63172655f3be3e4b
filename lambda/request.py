"""What is asked, of which photo: in JSON, in a form, or as the photo itself."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from typing import Any, Final

from errors import Refusal, bad_request, too_large, unsupported
from events import INLINE_BYTES, JSON, PNG, HttpRequest, S3Object, decoded_base64
from photos import sniff

_SOURCES: Final = ("image", "s3", "url")
_FIELDS: Final = (*_SOURCES, "top_k", "explain")
_EXPECTED: Final = 'expected {"image": "<base64>"}, {"s3": "s3://bucket/key"} or {"url": "https://…"}'


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked, of which one photo: its bytes, an object of S3, or an https:// URL."""

    image: bytes | None = None
    s3: S3Object | None = None
    url: str | None = None
    top_k: int | None = None
    explain: bool = False


def request_from_http(http: HttpRequest) -> Request:
    """Raises Refusal: 400, 406, 413, 415."""
    fields: dict[str, Any] = dict(http.query)
    if _wants_png(http.headers.get("accept", "")):
        fields.setdefault("explain", "cam")
    if http.content_type == JSON:
        return request_from_json(_json(http.body), fields)
    if http.content_type == "multipart/form-data":
        return request_from_json({**fields, **_form(http)})
    return request_from_json({**fields, "image": _photo(http)})


def request_from_json(value: Any, defaults: Mapping[str, Any] | None = None) -> Request:
    """Read a direct invocation's event, or a JSON body. Raises Refusal (400, 413)."""
    if not isinstance(value, dict):
        raise bad_request(f"the JSON is a {type(value).__name__}; {_EXPECTED}")
    fields = {**(defaults or {}), **value}
    if unknown := [str(name)[:50] for name in fields if name not in _FIELDS]:
        near = difflib.get_close_matches(unknown[0].lower(), _FIELDS, n=1)
        raise bad_request(f"{unknown[0]!r} is unknown; " + (f"did you mean {near[0]!r}?" if near else _EXPECTED))
    if len(sources := [name for name in _SOURCES if fields.get(name)]) != 1:
        found = " and ".join(map(repr, sources)) or "none of them"
        raise bad_request(f"a photo comes as one of 'image', 's3' and 'url'; found {found}; {_EXPECTED}")
    return Request(
        image=_image(fields.get("image")),
        s3=_s3_object(_text(fields, "s3")),
        url=_text(fields, "url"),
        top_k=_top_k(fields.get("top_k")),
        explain=_explain(fields.get("explain")),
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON ({str(error)[:200]}); {_EXPECTED}") from error


def _form(http: HttpRequest) -> dict[str, Any]:
    """The fields of a form upload; a part with a file name is the photo, whatever its field is called."""
    try:
        parts = _parts(http)
        files = [part for part in parts if part.get_filename() is not None]
    except (ValueError, RecursionError) as error:  # Of charsets that are none, endless numbers, and forms in forms.
        raise bad_request(f"the form cannot be read: {str(error)[:200]}") from error
    if len(files) > 1:
        raise bad_request(f"the form holds {len(files)} files; send one photo at a time")
    fields: dict[str, Any] = {
        _name(part): _content(part).decode(errors="replace") for part in parts if part not in files
    }
    return {**fields, "image": _content(files[0])} if files else fields


def _parts(http: HttpRequest) -> list[Message]:
    head = f"Content-Type: {http.headers['content-type']}\r\n\r\n".encode()
    parsed = BytesParser().parsebytes(head + http.body)
    if not parsed.is_multipart():
        raise bad_request("the form has no parts; its Content-Type must name the boundary that stands in the body")
    return [part for part in parsed.get_payload() if isinstance(part, Message)]


def _name(part: Message) -> str:
    return str(part.get_param("name", "", header="content-disposition"))


def _content(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _photo(http: HttpRequest) -> bytes:
    """The body as a photo; what it is counts more than what it is called (curl says x-www-form-urlencoded)."""
    if not http.body:
        raise bad_request(f"the body is empty; send a photo, or {_EXPECTED.removeprefix('expected ')}")
    if sniff(http.body):
        return http.body
    if sniff(decoded := _base64_or_nothing(http.body)):
        return decoded
    if http.content_type.startswith("image/") or http.content_type.endswith("/octet-stream"):
        return http.body
    raise unsupported(
        f"Content-Type is {http.content_type!r}; send a photo (image/jpeg, image/png, image/webp, image/bmp, "
        "application/octet-stream), application/json or multipart/form-data"
    )


def _image(value: Any) -> bytes | None:
    if not value:
        return None
    if not isinstance(value, str | bytes):
        raise bad_request(f"'image' is a {type(value).__name__}; it must be the photo's base64 text")
    data = decoded_base64(value, "'image'") if isinstance(value, str) else value
    if len(data) > INLINE_BYTES:
        raise too_large(
            f"the photo has {len(data):,} bytes; at most {INLINE_BYTES:,} reach a function inside a request (its 6 MB "
            "hold them as base64); scale the photo down, or pass larger ones by 's3' or 'url'"
        )
    return data


def _base64_or_nothing(body: bytes) -> bytes:
    try:
        return decoded_base64(body.decode("ascii"), "the body")
    except (UnicodeDecodeError, Refusal):
        return b""


def _s3_object(location: str | None) -> S3Object | None:
    if location is None:
        return None
    # A key is at most 1024 bytes of UTF-8, which holds no half of a surrogate pair.
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\ud800-\udfff]{1,1024})", location)
    if match is None:
        raise bad_request(f"'s3' is {location[:200]!r}; expected s3://bucket/key")
    return S3Object(bucket=match[1], key=match[2])


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value and not isinstance(value, str):
        raise bad_request(f"{name!r} is a {type(value).__name__}; it must be text")
    return value or None


def _top_k(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch("[1-9][0-9]{0,3}", str(value)):
        raise bad_request(f"'top_k' is {str(value)[:50]!r}; it must be a whole number from 1 to 9999")
    return int(value)


def _explain(value: Any) -> bool:
    if value not in (None, "", "cam"):
        raise bad_request(f"'explain' is {str(value)[:50]!r}; it can only be 'cam' (a class-activation map)")
    return bool(value)


def _wants_png(accept: str) -> bool:
    """Raises Refusal (406) where neither JSON nor PNG is accepted."""
    names = [part.split(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    if not names or any(name in (JSON, "application/*", "*/*") for name in names):
        return False
    if any(name in (PNG, "image/*") for name in names):
        return True
    raise Refusal(406, "not_acceptable", f"Accept is {accept[:200]!r}; answers are {JSON}, or {PNG} for a heat map")
