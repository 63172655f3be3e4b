"""What MMS calls in a worker: `handle`, once to load and then for every request.

At module level because MMS swallows what a handler class's initialize() raises (mms/model_loader.py). Of a response
it sets the status, the content type and a body of 60 bytes or more, and nothing else: MMS's decoder fails on frames
that end within a header map, and kills the worker. Headers are added by the front.
"""

from __future__ import annotations

import faulthandler
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from container.errors import KennelError, RequestError
from serve import codec
from serve.api import ATTRIBUTES_HEADER
from serve.link import Link
from serve.logs import log
from serve.predictor import ClassProbability, Predictor

SETTINGS = "worker.json"
# With a charset, so that the front can tell our answers from MMS's own errors, which it must translate.
_JSON_TYPE = "application/json; charset=utf-8"
_LEAST_BODY_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of /invocations; `headers` by lower-case name."""

    body: bytes
    headers: dict[str, str]

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    body: bytes
    content_type: str = _JSON_TYPE


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a loaded worker keeps between calls."""

    predictor: Predictor
    link: Link
    timeout_s: float


_loaded: Worker | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """MMS's entry: `data` is None at load, then a list of one {"body": bytearray}."""
    global _loaded
    if data is None:
        _loaded = load(Path(context.system_properties["model_dir"]), model=context.model_name)
        return None
    assert _loaded is not None  # noqa: S101  MMS loads before it calls
    headers = {name.lower(): value for name, value in context.get_all_request_header(0).items() if name != "body"}
    response = respond(Request(body=bytes(data[0].get("body") or b""), headers=headers), _loaded)
    # An empty phrase: MMS sends the status's own.
    context.set_response_status(response.status, HTTPStatus(response.status).phrase[:20], 0)
    context.set_response_content_type(0, response.content_type)
    return [response.body.ljust(_LEAST_BODY_BYTES)]


def load(folder: Path, *, model: str) -> Worker:
    """Load the artifact that the settings in `folder` name; tell `serve` whether it can be served."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    link = Link(Path(settings["control"]), model=model)
    started = time.monotonic()
    try:
        predictor = Predictor.load(Path(settings["artifact"]), threads=settings["threads"])
    except MemoryError:
        raise  # Another worker may be ending; MMS tries again.
    except Exception as error:
        link.failed(str(error) if isinstance(error, KennelError) else f"the model cannot be loaded: {error!r}")
        raise
    log("worker", "ready", model=model, seconds=round(time.monotonic() - started, 3))
    link.ready()
    return Worker(predictor=predictor, link=link, timeout_s=settings["timeout_s"])


def respond(request: Request, worker: Worker) -> Response:
    """Answer one request: the translator of errors to HTTP. Nothing is raised, and no traceback leaves."""
    try:
        with _timed(worker):
            return _json(200, answer(request, worker.predictor))
    except KennelError as error:
        return _json(error.status, codec.encode_error(error, request.id))
    except Exception as error:
        log("worker", "failed", request_id=request.id, error=repr(error), traceback=traceback.format_exc())
        broken = KennelError("the server failed at this request; its log has the reason under this request_id")
        return _json(broken.status, codec.encode_error(broken, request.id))


@contextmanager
def _timed(worker: Worker) -> Iterator[None]:
    # Ends this process, with its traceback on stderr: nothing else stops a call that hangs in native code.
    faulthandler.dump_traceback_later(worker.timeout_s, exit=True, file=2)
    worker.link.busy()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        worker.link.idle()


def answer(request: Request, predictor: Predictor) -> dict[str, Any]:
    """Raises RequestError for what the caller can mend."""
    codec.check_accept(request.headers.get("accept", ""))
    options = codec.read_options(request.headers.get(ATTRIBUTES_HEADER.lower(), ""))
    photos = codec.read_photos(request.body, request.headers.get("content-type", "application/octet-stream"))
    top_k = min(options.top_k or predictor.manifest.top_k, len(predictor.manifest.class_names))
    results = [_predict(photo, predictor, top_k) for photo in photos.items]
    if photos.many:
        return codec.encode_many(results, predictor.manifest)
    if isinstance(results[0], KennelError):
        raise results[0]
    return codec.encode_one(results[0], predictor.manifest)


def _predict(photo: bytes | KennelError, predictor: Predictor, top_k: int) -> list[ClassProbability] | KennelError:
    if isinstance(photo, KennelError):
        return photo
    try:
        return predictor.predict(photo, top_k)
    except RequestError as error:
        return error


def _json(status: int, value: dict[str, Any]) -> Response:
    return Response(status=status, body=json.dumps(value).encode())
