"""Requests over HTTP, by API Gateway or a function URL: GET gives people a page, POST classifies a photo."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import answers
import events
from answers import Response
from classifier import Classifier
from errors import Refusal
from events import JSON, PNG
from request import Request, request_from_http
from telemetry import Record

_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Accept, Content-Type",
    "Access-Control-Max-Age": "3600",
}


def answer(event: Mapping[str, Any], classifier: Classifier, record: Record) -> Response:
    cors = _cors(events.http_headers(event).get("origin", ""), classifier.config.cors_origins)

    def ask() -> Response:
        http = events.http_request(event)
        if http.method == "POST":
            return _posted(request_from_http(http), classifier, record, cors)
        if http.method in ("GET", "HEAD"):
            return _page()
        if http.method == "OPTIONS" and cors:
            return answers.proxy(204, "", JSON, {**cors, **_PREFLIGHT})
        raise Refusal(405, "method_not_allowed", f"{http.method} is not answered; POST a photo, or GET the page")

    def refuse(refusal: Refusal) -> Response:
        body = answers.to_json(answers.error(refusal, record))
        return answers.proxy(refusal.status, body, JSON, {**cors, **_hints(refusal)})

    return answers.answered(ask, refuse, record)


def _posted(request: Request, classifier: Classifier, record: Record, cors: Mapping[str, str]) -> Response:
    if request.explain:
        return answers.proxy(200, classifier.heat_map(request, record), PNG, cors)
    return answers.proxy(200, answers.to_json(classifier.classify(request, record)), JSON, cors)


def _cors(origin: str, allowed: frozenset[str]) -> dict[str, str]:
    """The headers that let a page of an allowed origin read the answer; none for all others."""
    if origin and "*" in allowed:
        return {"Access-Control-Allow-Origin": "*"}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if origin in allowed else {}


def _hints(refusal: Refusal) -> dict[str, str]:
    if refusal.retry_after_s is not None:
        return {"Retry-After": str(refusal.retry_after_s)}
    return {"Allow": "GET, HEAD, POST"} if refusal.status == 405 else {}


def _page() -> Response:
    nonce = secrets.token_urlsafe(16)
    headers = {
        "Content-Security-Policy": _PAGE_POLICY.format(nonce=nonce),
        "Permissions-Policy": "camera=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return answers.proxy(200, _page_text().replace("NONCE", nonce), "text/html; charset=utf-8", headers)


@cache
def _page_text() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")
