"""HTTP bodies and headers to photos and options, and predictions to HTTP bodies."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from container.artifact import Manifest
from container.errors import KennelError, NotAcceptableError, RequestError, UnsupportedMediaTypeError
from serve.api import ATTRIBUTES_HEADER, CONTENT_TYPES, JSON, PHOTO_TYPES
from serve.predictor import ClassProbability

# One worker answers them one after the other, within one deadline.
MAX_INSTANCES: Final = 128

_OPTION_NAMES: Final = ("top_k",)
_OPTION: Final = re.compile(r"\s*([A-Za-z_-]+)\s*=\s*(.*?)\s*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller asks for beside the default; `top_k` of None is the manifest's."""

    top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Photos of one request. A single photo's errors are the request's; an instance's are its own."""

    items: Sequence[bytes | KennelError]
    many: bool


def read_options(attributes: str) -> Options:
    """Parse `top_k=3` out of the custom attributes; other attributes are the caller's own.

    Raises RequestError for a value out of range, or a name that can only be one of ours misspelt.
    """
    found = (_OPTION.fullmatch(part) for part in re.split("[,;]", attributes))
    values = {match[1]: match[2] for match in found if match}
    for name in values:
        near = difflib.get_close_matches(name.lower(), _OPTION_NAMES, n=1, cutoff=0.75)
        if name not in _OPTION_NAMES and near:
            raise RequestError(f"{ATTRIBUTES_HEADER} holds {name!r}, which is unknown; did you mean {near[0]!r}?")
    return Options(top_k=_top_k(values["top_k"]) if "top_k" in values else None)


def _top_k(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise RequestError(f"top_k is {text!r}; it must be a whole number of 1 or more")
    return int(text)


def check_accept(accept: str) -> None:
    """Raises NotAcceptableError unless `accept` (empty: anything) allows JSON."""
    ranges = [part for part in accept.split(",") if part.strip()]
    if not ranges:
        return
    for part in ranges:
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        if name in (JSON, "application/*", "*/*") and not any(re.fullmatch(r"q=0(\.0*)?", p) for p in parameters):
            return
    raise NotAcceptableError(f"Accept is {accept!r}; this endpoint answers with {JSON}")


def read_photos(body: bytes, content_type: str) -> Photos:
    """Find the photos in a body; raises RequestError or UnsupportedMediaTypeError."""
    name = content_type.split(";")[0].strip().lower()
    if name == JSON:
        return Photos(items=_instances(body), many=True)
    if name in PHOTO_TYPES:
        return Photos(items=[body], many=False)
    raise UnsupportedMediaTypeError(f"Content-Type is {content_type!r}; send one of {', '.join(CONTENT_TYPES)}")


def _instances(body: bytes) -> list[bytes | KennelError]:
    expected = 'expected {"instances": [{"b64": "<a photo in base64>"}, ...]}'
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({_short(error)}); {expected}") from error
    instances = value.get("instances") if isinstance(value, dict) else None
    if not isinstance(instances, list) or not instances:
        raise RequestError(f"the body has no list of instances; {expected}")
    if len(instances) > MAX_INSTANCES:
        raise RequestError(f"the body has {len(instances)} instances; at most {MAX_INSTANCES} are taken at once")
    return [_instance(item) for item in instances]


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


def encode_one(predictions: Sequence[ClassProbability], manifest: Manifest) -> dict[str, Any]:
    return {**_result(predictions), "model": _model(manifest)}


def encode_many(results: Sequence[Sequence[ClassProbability] | KennelError], manifest: Manifest) -> dict[str, Any]:
    encoded = [
        {"error": {"code": result.code, "message": str(result)}} if isinstance(result, KennelError) else _result(result)
        for result in results
    ]
    return {"results": encoded, "model": _model(manifest)}


def encode_error(error: KennelError, request_id: str) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error), "request_id": request_id}}


def _result(predictions: Sequence[ClassProbability]) -> dict[str, Any]:
    best = predictions[0]
    return {
        "label": best.label,
        "probability": best.probability,
        "predictions": [asdict(prediction) for prediction in predictions],
    }


def _model(manifest: Manifest) -> Mapping[str, str]:
    return {"architecture": manifest.architecture, "version": manifest.version}
