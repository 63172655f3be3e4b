"""AWS Lambda: from a photo to its label, for programs and for people. `handler` is the function."""

from __future__ import annotations

import base64
import gc
import itertools
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Protocol

import answers
import events
import notifications
import web
from answers import Response
from classifier import Classifier
from config import Config
from endpoint import Buckets, SageMakerEndpoint
from errors import ConfigError, Refusal
from events import PNG
from request import request_from_json
from telemetry import Record
from urls import Fetcher

_CALLS: Final = itertools.count()
# More than any model has: the endpoint then gives the probabilities of all.
_ALL_CLASSES: Final = 999_999


class Context(Protocol):
    """What is used of Lambda's context object."""

    @property
    def aws_request_id(self) -> str: ...

    def get_remaining_time_in_millis(self) -> int: ...


def handler(event: Any, context: Context) -> Response:
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
    """All that is behind `handler`."""

    classifier: Classifier

    def handle(self, event: Any, context: Context) -> Response:
        record = Record(context.aws_request_id)
        record.note(cold_start=int(_is_cold_start()))
        self._check_time(context, record)
        try:
            return self._dispatch(event, record)
        finally:
            record.print()

    def _check_time(self, context: Context, record: Record) -> None:
        remaining_s = context.get_remaining_time_in_millis() / 1000
        setting = self.classifier.config.function_timeout_s
        if remaining_s < setting - 1:
            record.note(
                warning=f"FUNCTION_TIMEOUT_S is {setting}, but this call had only {remaining_s:.1f} s from the start: "
                "give the function that time-out, or lower the setting"
            )

    def _dispatch(self, event: Any, record: Record) -> Response:
        if events.is_s3(event):
            record.note(source="s3")
            return notifications.answer(event, self.classifier, record)
        if events.is_http(event):
            record.note(source="http")
            return web.answer(event, self.classifier, record)
        record.note(source="direct")
        return self._invoked(event, record)

    def _invoked(self, event: Any, record: Record) -> Response:
        legacy = self.classifier.config.legacy_response

        def ask() -> Response:
            request = request_from_json(event)
            if request.explain:
                return _heat_map(self.classifier.heat_map(request, record), record)
            if legacy:
                value = self.classifier.classify(replace(request, top_k=_ALL_CLASSES), record)
                return answers.legacy(200, answers.scores(value))
            return self.classifier.classify(request, record)

        def refuse(refusal: Refusal) -> Response:
            error = answers.error(refusal, record)
            return answers.legacy(refusal.status, error) if legacy else error

        return answers.answered(ask, refuse, record)


def _heat_map(png: bytes, record: Record) -> Response:
    return {"image": base64.b64encode(png).decode(), "content_type": PNG, "request_id": record.request_id}


def _is_cold_start() -> bool:
    """Whether a caller waited for this environment: provisioned ones start before they are called."""
    return next(_CALLS) == 0 and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") == "on-demand"


# Lambda runs this file's import as the init phase, before the first call; elsewhere an import does nothing.
if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    sys.tracebacklimit = 0  # The runtime sends a raised exception back to whoever called, stack and all.
    gc.disable()  # What is made here stays: looking through it for garbage, now or later, costs time for nothing.
    application()
    gc.freeze()
    gc.enable()
