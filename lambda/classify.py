"""AWS Lambda: from a photo to its label, for programs and for people. `handler` is the function."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import events
from classifier import Classifier
from config import Config
from endpoint import Buckets, SageMakerEndpoint
from errors import ConfigError, Refusal
from events import JSON, PNG, HttpRequest, Request, S3Object
from telemetry import Record
from urls import Fetcher

Event = Mapping[str, Any]
Response = dict[str, Any]

_CALLS: Final = itertools.count()
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Context(Protocol):
    """What is used of Lambda's context object."""

    @property
    def aws_request_id(self) -> str: ...

    def get_remaining_time_in_millis(self) -> int: ...


def handler(event: Event, context: Context) -> Response:
    """Answer a direct invocation, a request of API Gateway or a function URL, or a notification of S3."""
    return application().handle(event, context)


@cache
def application() -> Application:
    """The function's parts, made from the environment variables once in an environment's life."""
    try:
        config = Config.from_env(os.environ)
    except ConfigError as error:
        # Provisioned environments then fail while they are deployed, not at their first call.
        sys.exit(f"this function's settings cannot be used: {error}")
    classifier = Classifier(
        config=config,
        endpoint=SageMakerEndpoint(config.endpoint_name, read_timeout_s=config.read_timeout_s),
        buckets=Buckets(config.allowed_buckets, timeout_s=config.fetch_timeout_s),
        fetcher=Fetcher(allowed_hosts=config.allowed_url_hosts, timeout_s=config.fetch_timeout_s),
    )
    return Application(classifier)


@dataclass(frozen=True)
class Application:
    """One method for each kind of caller; none of them lets an exception out to one who could read it."""

    classifier: Classifier

    @property
    def config(self) -> Config:
        return self.classifier.config

    def handle(self, event: Event, context: Context) -> Response:
        record = Record(context.aws_request_id)
        record.note(cold_start=int(_is_cold_start()))
        self._check_time(context, record)
        try:
            if isinstance(event, dict) and events.is_s3(event):
                return self._notified(event, record)
            if isinstance(event, dict) and events.is_http(event):
                return self._asked_by_http(event, record)
            return self._invoked(event, record)
        finally:
            record.print()

    def _check_time(self, context: Context, record: Record) -> None:
        remaining_s = context.get_remaining_time_in_millis() / 1000
        if remaining_s < self.config.function_timeout_s - 1:
            record.note(
                warning=f"FUNCTION_TIMEOUT_S is {self.config.function_timeout_s}, but this call had only "
                f"{remaining_s:.1f} s from the start: give the function that time-out, or lower the setting"
            )

    def _invoked(self, event: Event, record: Record) -> Response:
        record.note(source="direct")

        def ask() -> Response:
            request = events.request_from_json(event)
            if request.explain:
                image = base64.b64encode(self.classifier.heat_map(request, record)).decode()
                return {"image": image, "content_type": PNG, "request_id": record.request_id}
            answer = self.classifier.classify(request, record)
            return _legacy(200, _scores(answer)) if self.config.legacy_response else answer

        def refuse(refusal: Refusal) -> Response:
            error = _error(refusal, record)
            return _legacy(refusal.status, error) if self.config.legacy_response else error

        return _answered(ask, refuse, record)

    def _asked_by_http(self, event: Event, record: Record) -> Response:
        record.note(source="http")
        cors = self._cors(event)

        def ask() -> Response:
            http = events.http_request(event)
            if http.method == "POST":
                return self._posted(http, record, cors)
            if http.method in ("GET", "HEAD"):
                return _page()
            if http.method == "OPTIONS" and cors:
                return events.http_response(204, "", JSON, {**cors, **_PREFLIGHT})
            raise Refusal(405, "method_not_allowed", f"{http.method} is not answered; POST a photo, or GET the page")

        def refuse(refusal: Refusal) -> Response:
            return events.http_response(
                refusal.status, _json(_error(refusal, record)), JSON, {**cors, **_hints(refusal)}
            )

        return _answered(ask, refuse, record)

    def _posted(self, http: HttpRequest, record: Record, cors: Mapping[str, str]) -> Response:
        request = events.request_from_http(http)
        if request.explain:
            return events.http_response(200, self.classifier.heat_map(request, record), PNG, cors)
        answer = self.classifier.classify(request, record)
        return events.http_response(200, _json(_scores(answer) if self.config.legacy_response else answer), JSON, cors)

    def _cors(self, event: Event) -> dict[str, str]:
        """The headers that let a page of an allowed origin read the answer; none for all others."""
        headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
        origin = headers.get("origin")
        if origin and "*" in self.config.cors_origins:
            return {"Access-Control-Allow-Origin": "*"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if origin in self.config.cors_origins else {}

    def _notified(self, event: Event, record: Record) -> Response:
        """Classify new objects; what may succeed later is raised at the end, so that Lambda tries again."""
        record.note(source="s3")
        photos = [item for item in events.new_objects(event) if self._is_photo(item)]
        failures = [failure for item in photos if (failure := self._file_result(item, record))]
        record.status(failures[0].status if failures else 200)
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(photos)} photos were not classified: {failures[0].message}")
        return {"classified": len(photos)}

    def _is_photo(self, item: S3Object) -> bool:
        # Results lie in the bucket that notifies: an answer to one of them would be answered without end.
        return not item.key.startswith(self.config.result_prefix) and not item.key.endswith("/")

    def _file_result(self, item: S3Object, record: Record) -> Refusal | None:
        """Write an object's result, or what is wrong with the object; return what went wrong on our side."""
        try:
            result = self._result(item, record)
            target = S3Object(bucket=item.bucket, key=f"{self.config.result_prefix}{item.key}.json")
            self.classifier.buckets.write_json(target, {"source": vars(item), **result})
        except Refusal as refusal:
            record.refused(refusal)
            return refusal
        return None

    def _result(self, item: S3Object, record: Record) -> Response:
        try:
            return self.classifier.classify(Request(s3=item), record)
        except Refusal as refusal:
            if refusal.status == 429 or refusal.status >= 500:
                raise
            record.refused(refusal)
            return _error(refusal, record)


def _answered(ask: Callable[[], Response], refuse: Callable[[Refusal], Response], record: Record) -> Response:
    """The border: whatever happens inside becomes an answer in the caller's shape, without a traceback."""
    try:
        response = ask()
    except Refusal as refusal:
        record.refused(refusal)
        return refuse(refusal)
    except Exception:
        record.note(traceback=traceback.format_exc())
        broken = Refusal(500, "internal_error", "the function failed; its log has the reason under this request_id")
        record.refused(broken)
        return refuse(broken)
    record.status(response.get("statusCode", 200))
    return response


def _is_cold_start() -> bool:
    """Whether a caller waited for this environment: provisioned ones start before they are called."""
    return next(_CALLS) == 0 and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") == "on-demand"


def _error(refusal: Refusal, record: Record) -> Response:
    error = {"status": refusal.status, "code": refusal.code, "message": refusal.message}
    return {"error": {**error, "request_id": record.request_id}}


def _hints(refusal: Refusal) -> dict[str, str]:
    if refusal.retry_after_s is not None:
        return {"Retry-After": str(refusal.retry_after_s)}
    return {"Allow": "GET, HEAD, POST"} if refusal.status == 405 else {}


def _scores(answer: Response) -> list[list[float]]:
    """The old callers' body: one row with a score a class, in the order of the classes."""
    in_order = sorted(answer["predictions"], key=lambda prediction: prediction["index"])
    return [[prediction["probability"] for prediction in in_order]]


def _legacy(status: int, value: Any) -> Response:
    return {"statusCode": status, "headers": {"Content-Type": JSON}, "body": _json(value)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _page() -> Response:
    nonce = secrets.token_urlsafe(16)
    headers = {
        "Content-Security-Policy": _PAGE_POLICY.format(nonce=nonce),
        "Permissions-Policy": "camera=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return events.http_response(200, _page_text().replace("NONCE", nonce), "text/html; charset=utf-8", headers)


@cache
def _page_text() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Accept, Content-Type",
    "Access-Control-Max-Age": "3600",
}

# Lambda runs this file's import as the init phase, before the first call and at full CPU speed; elsewhere an import
# does nothing.
if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    application()
