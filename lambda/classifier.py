"""The way of a photo: found, made to fit, sent to the endpoint, its answer checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from config import Config
from endpoint import Answer, Buckets, Endpoint
from errors import Refusal, timed_out, too_large
from events import INLINE_BYTES, JSON, PNG
from photos import Photo, acceptable_bytes, fitted
from request import Request
from telemetry import Record
from urls import Fetcher


@dataclass(frozen=True, kw_only=True)
class Classifier:
    config: Config
    endpoint: Endpoint
    buckets: Buckets
    fetcher: Fetcher

    def classify(self, request: Request, record: Record) -> dict[str, Any]:
        """The endpoint's answer, with the request id. Raises Refusal."""
        answer = self._ask(request, record, accept=JSON, attributes=self._attributes(request))
        value = _read(answer)
        record.note(not_confident=int(value.get("confident") is False))
        return {**value, "request_id": record.request_id}

    def heat_map(self, request: Request, record: Record) -> bytes:
        """The photo under its class-activation map, as PNG. Raises Refusal."""
        answer = self._ask(request, record, accept=PNG, attributes="explain=cam")
        if answer.content_type != PNG:
            raise Refusal(406, "not_acceptable", "this endpoint gives no heat maps")
        if len(answer.body) > INLINE_BYTES:
            raise too_large(
                f"the heat map has {len(answer.body):,} bytes; an answer through this function holds {INLINE_BYTES:,}; "
                "send a smaller photo"
            )
        return answer.body

    def _attributes(self, request: Request) -> str:
        top_k = request.top_k or self.config.top_k
        return f"top_k={top_k}" if top_k else ""

    def _ask(self, request: Request, record: Record, *, accept: str, attributes: str) -> Answer:
        with record.timed("photo_ms"):
            photo = fitted(Photo.of(self._find(request)), self.config.max_image_bytes)
        record.note(photo_bytes=len(photo.data))
        if record.elapsed_s > self.config.latest_call_s:
            raise timed_out("photo_timeout", "the photo was ready too late to be sent to the endpoint in time")
        with record.timed("endpoint_ms"):
            return self.endpoint.invoke(photo, accept=accept, attributes=attributes, request_id=record.request_id)

    def _find(self, request: Request) -> bytes:
        max_bytes = acceptable_bytes(self.config.max_image_bytes)
        if request.s3 is not None:
            return self.buckets.read(request.s3, max_bytes=max_bytes)
        if request.url is not None:
            return self.fetcher.fetch(request.url, max_bytes=max_bytes)
        return request.image or b""


def _read(answer: Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.body)
        if isinstance(value, dict) and isinstance(value["predictions"], list):
            return value
    except (ValueError, KeyError):
        pass
    raise Refusal(502, "endpoint_failed", "the endpoint's answer is not that of a classifier of photos")
