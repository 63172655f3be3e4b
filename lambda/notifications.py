"""Notifications of S3: a new photo gets its result as JSON, in the same bucket, under a prefix of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import answers
import events
from answers import Response
from classifier import Classifier
from errors import Refusal, timed_out
from events import S3Object
from request import Request
from telemetry import Record


def answer(event: Mapping[str, Any], classifier: Classifier, record: Record) -> Response:
    """Classify new objects. What is no photo's own fault is raised at the end, so that Lambda tries the event again."""
    prefix = classifier.config.result_prefix
    photos = [item for item in events.new_objects(event) if _is_photo(item, prefix)]
    failures = [failure for item in photos if (failure := _file_result(item, classifier, record))]
    record.status(failures[0].status if failures else 200)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(photos)} photos were not classified: {failures[0].message}")
    return {"classified": len(photos)}


def _is_photo(item: S3Object, result_prefix: str) -> bool:
    # Results lie in the bucket that notifies: an answer to one of them would be answered without end. All of them end
    # in .json, those of another function with another prefix too.
    return not item.key.startswith(result_prefix) and not item.key.endswith(("/", ".json"))


def _file_result(item: S3Object, classifier: Classifier, record: Record) -> Refusal | None:
    """Write an object's result, or what is wrong with the object; return what went wrong on our side."""
    target = S3Object(bucket=item.bucket, key=f"{classifier.config.result_prefix}{item.key}.json")
    try:
        result = _result(item, classifier, record)
        if record.elapsed_s > classifier.config.latest_result_s:
            raise timed_out("result_timeout", "the result came too late to be written in time")
        classifier.buckets.write_json(target, {"source": vars(item), **result})
    except Refusal as refusal:
        record.refused(refusal)
        return refusal
    return None


def _result(item: S3Object, classifier: Classifier, record: Record) -> Response:
    try:
        return classifier.classify(Request(s3=item), record)
    except Refusal as refusal:
        # S3 has just told that the object is there: what keeps us from reading it now is a policy, not the photo.
        if refusal.status == 429 or refusal.status >= 500 or refusal.code == "object_not_found":
            raise
        record.refused(refusal)
        return answers.error(refusal, record)
