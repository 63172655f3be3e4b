"""HTTP bodies and headers to photos, and predictions to HTTP bodies."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from container.artifact import Manifest
from container.errors import KennelError, NotAcceptableError, RequestError, UnsupportedMediaTypeError
from serve.api import ANSWER_TYPES, CONTENT_TYPES, CSV, JSON, JSON_LINES, MAX_INSTANCES, PHOTO_TYPES, PNG
from serve.options import Options
from serve.prediction import Prediction

Result = Prediction | KennelError


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Photos of one request. A single photo's errors are the request's; an instance's are its own."""

    items: Sequence[bytes | KennelError]
    many: bool


@dataclass(frozen=True, kw_only=True)
class Body:
    """What is answered; `content_type` without parameters."""

    content_type: str
    content: bytes


def choose_type(accept: str, *, default: str = "", explain: bool = False) -> str:
    """The one of ANSWER_TYPES that `accept` likes best; raises NotAcceptableError where it has none.

    No `accept`, or the */* that curl and requests send of themselves, is for `default` (empty: anything). A PNG is for
    who names it, or asks to have an answer explained.
    """
    if accept.strip(" ,") in ("", "*/*"):
        accept = default or "*/*"
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    order = sorted(ANSWER_TYPES, key=lambda name: name != PNG) if explain else ANSWER_TYPES
    best, best_quality = "", 0.0
    for offered in order:
        quality = _quality(ranges, offered, by_name=offered == PNG and not explain)
        if quality > best_quality:
            best, best_quality = offered, quality
    if not best:
        raise NotAcceptableError(f"Accept is {accept[:200]!r}; this endpoint answers with {', '.join(ANSWER_TYPES)}")
    return best


def _quality(ranges: list[tuple[str, float]], offered: str, *, by_name: bool) -> float:
    """The q of the most specific range that `offered` falls in; 0 for none."""
    patterns = (offered,) if by_name else (offered, offered.split("/")[0] + "/*", "*/*")
    for pattern in patterns:
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (text.strip().lower() for text in part.split(";"))
    for parameter in parameters:
        if match := re.fullmatch(r"q=([01](?:\.[0-9]{0,3})?)", parameter):
            return name, float(match[1])
    return name, 1.0


def read_photos(body: bytes, content_type: str) -> Photos:
    """Find the photos in a body; raises RequestError or UnsupportedMediaTypeError."""
    name = content_type.split(";")[0].strip().lower()
    if name == JSON:
        return Photos(items=_instances(body), many=True)
    if name == JSON_LINES:
        return Photos(items=_checked_count([_line(line) for line in body.splitlines() if line.strip()]), many=True)
    if name in PHOTO_TYPES:
        return Photos(items=[body], many=False)
    raise UnsupportedMediaTypeError(f"Content-Type is {content_type[:200]!r}; send one of {', '.join(CONTENT_TYPES)}")


def _instances(body: bytes) -> list[bytes | KennelError]:
    expected = 'expected {"instances": [{"b64": "<a photo in base64>"}, ...]}'
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({_short(error)}); {expected}") from error
    instances = value.get("instances") if isinstance(value, dict) else None
    if not isinstance(instances, list):
        raise RequestError(f"the body has no list of instances; {expected}")
    return [_instance(item) for item in _checked_count(instances)]


def _checked_count(items: list[Any]) -> list[Any]:
    if not 1 <= len(items) <= MAX_INSTANCES:
        raise RequestError(f"the body has {len(items)} instances; from 1 to {MAX_INSTANCES} are taken at once")
    return items


def _line(line: bytes) -> bytes | KennelError:
    try:
        return _instance(json.loads(line))
    except (ValueError, RecursionError) as error:
        return RequestError(f"the line is not JSON ({_short(error)})")


def _instance(item: Any) -> bytes | KennelError:
    text = item.get("b64") if isinstance(item, dict) else None
    if not isinstance(text, str):
        return RequestError('an instance must be {"b64": "<a photo in base64>"}')
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return RequestError(f"'b64' is not base64: {_short(error)}")


def _short(error: Exception) -> str:
    return str(error)[:200]


def check_together(photos: Photos, options: Options, content_type: str) -> None:
    """Raises NotAcceptableError for wishes that cannot all be met in one answer."""
    if (options.explain or content_type == PNG) and photos.many:
        raise NotAcceptableError("a heat map is drawn for a single photo, sent as such; instances have none")
    if options.embed and content_type in (CSV, PNG):
        raise NotAcceptableError(f"embed=true is answered in {JSON} or {JSON_LINES}, not in {content_type}")
    if options.explain and content_type in (CSV, JSON_LINES):
        raise NotAcceptableError(f"explain=cam is answered in {PNG} or {JSON}, not in {content_type}")


def encode(results: Sequence[Result], manifest: Manifest, *, many: bool, content_type: str) -> Body:
    """The answer for one photo (no error then) or for many."""
    if content_type == PNG and isinstance(results[0], Prediction) and results[0].heat_map is not None:
        content = results[0].heat_map
    elif content_type == CSV:
        content = _csv(results)
    elif content_type == JSON_LINES:
        content = b"".join(json.dumps(_result(result)).encode() + b"\n" for result in results)
    elif many:
        content = json.dumps({"results": [_result(result) for result in results], "model": _model(manifest)}).encode()
    else:
        content = json.dumps({**_result(results[0]), "model": _model(manifest)}).encode()
    return Body(content_type=content_type, content=content)


def _csv(results: Sequence[Result]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "label", "index", "probability", "error"])
    for number, result in enumerate(results):
        if isinstance(result, KennelError):
            writer.writerow([number, "", "", "", str(result)])
        else:
            writer.writerows([number, item.label, item.index, item.probability, ""] for item in result.classes)
    return text.getvalue().encode()


def encode_error(error: KennelError, request_id: str) -> bytes:
    return json.dumps({"error": {"code": error.code, "message": str(error), "request_id": request_id}}).encode()


def _result(result: Result) -> dict[str, Any]:
    if isinstance(result, KennelError):
        return {"error": {"code": result.code, "message": str(result)}}
    best = result.classes[0]
    extras = {
        "confident": result.confident,
        "embedding": result.embedding,
        "heat_map": None if result.heat_map is None else {"b64": base64.b64encode(result.heat_map).decode()},
    }
    return {
        "label": best.label,
        "probability": best.probability,
        **{name: value for name, value in extras.items() if value is not None},
        "predictions": [asdict(item) for item in result.classes],
    }


def _model(manifest: Manifest) -> Mapping[str, str]:
    return {"architecture": manifest.architecture, "version": manifest.version}
