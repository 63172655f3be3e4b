"""The shapes in which callers are answered, and the border at which whatever happens inside becomes one of them."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from errors import Refusal
from events import JSON
from telemetry import Record

Response = dict[str, Any]

# A limit of its own: `classify` sets Python's to none, for what Lambda would send back.
_TRACEBACK_LINES: Final = 50


def answered(ask: Callable[[], Response], refuse: Callable[[Refusal], Response], record: Record) -> Response:
    """What `ask` returns, or what `refuse` makes of a Refusal; any other exception is a 500 without a traceback."""
    try:
        response = ask()
    except Refusal as refusal:
        record.refused(refusal)
        return refuse(refusal)
    except Exception:
        record.note(traceback=traceback.format_exc(_TRACEBACK_LINES))
        broken = Refusal(500, "internal_error", "the function failed; its log has the reason under this request_id")
        record.refused(broken)
        return refuse(broken)
    record.status(response.get("statusCode", 200))
    return response


def error(refusal: Refusal, record: Record) -> Response:
    # A message may quote what was sent, half a surrogate pair included, which no UTF-8 can carry back.
    message = refusal.message.encode(errors="replace").decode()
    content = {"status": refusal.status, "code": refusal.code, "message": message, "request_id": record.request_id}
    # In the body too: a direct invocation has no headers.
    later = {} if refusal.retry_after_s is None else {"retry_after_s": refusal.retry_after_s}
    return {"error": {**content, **later}}


def proxy(status: int, body: str | bytes, content_type: str, headers: Mapping[str, str]) -> Response:
    """For API Gateway and function URLs (payload formats 1.0 and 2.0 alike)."""
    text = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    all_headers = {"Content-Type": content_type, "Cache-Control": "no-store", **headers}
    return {"statusCode": status, "headers": all_headers, "body": text, "isBase64Encoded": isinstance(body, bytes)}


def legacy(status: int, value: Any) -> Response:
    """For the direct calls of old callers."""
    return {"statusCode": status, "headers": {"Content-Type": JSON}, "body": to_json(value)}


def scores(answer: Response) -> list[list[float]]:
    """The old callers' body: one row with a probability a class, in the order of the classes."""
    in_order = sorted(answer["predictions"], key=lambda prediction: prediction["index"])
    return [[prediction["probability"] for prediction in in_order]]


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
