"""What MMS calls in a worker: `handle`, once to load and then for every request.

At module level because MMS swallows what a handler class's initialize() raises (mms/model_loader.py). Of a response
it sets the status, the content type and a body of 60 bytes or more, and nothing else: MMS's decoder fails on frames
that end within a header map, and kills the worker. Headers are added by the front.
"""

from __future__ import annotations

import faulthandler
import json
import math
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from container.errors import AnswerTooLargeError, KennelError, OutOfMemoryError, PayloadTooLargeError, RequestError
from container.memory import keep_large_blocks_apart
from serve import codec, metrics
from serve.api import ARRIVED_HEADER, ATTRIBUTES_HEADER, JSON, PNG, TARGET_HEADER
from serve.cores import Cores
from serve.link import SETTINGS, Link
from serve.logs import log, write_to
from serve.options import Options, read_options
from serve.prediction import Prediction
from serve.predictor import Predictor

# With it the front tells our answers from MMS's own errors, which it must translate; it takes it off again.
_OURS = "; charset=utf-8"
_LEAST_BODY_BYTES = 64
# Of a caller's text in a log line.
_MOST_LOGGED = 256
# Longer than a request with nothing before it takes from the front to a worker: this one has found all at work.
_QUEUED_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of /invocations; `headers` by lower-case name."""

    body: bytes
    headers: dict[str, str]

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")

    def waited_s(self) -> float:
        """Since the front had its body (of a large one, the first MiB)."""
        arrived_ms = float(self.headers.get(ARRIVED_HEADER, "nan"))
        return 0.0 if math.isnan(arrived_ms) else max(0.0, time.time() - arrived_ms / 1000)


@dataclass(frozen=True, kw_only=True)
class Response:
    """`results` are for the log and the metrics."""

    status: int
    body: codec.Body
    results: list[codec.Result] = field(default_factory=list)
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a loaded worker keeps between calls; `targets` is what callers name its model, once they have called.

    `cores` is None where a GPU does the work.
    """

    model: str
    predictor: Predictor
    link: Link
    timeout_s: float
    max_payload_bytes: int
    default_accept: str
    cores: Cores | None = None
    targets: list[str] = field(default_factory=list)


_loaded: Worker | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """MMS's entry: `data` is None at load, then a list of one {"body": bytearray}."""
    global _loaded
    if data is None:
        properties = context.system_properties
        device = "cpu" if properties["gpu_id"] is None else f"cuda:{properties['gpu_id']}"
        _loaded = load(Path(properties["model_dir"]), model=context.model_name, device=device)
        return None
    assert _loaded is not None  # noqa: S101  MMS loads before it calls
    headers = {name.lower(): value for name, value in context.get_all_request_header(0).items() if name != "body"}
    response = respond(Request(body=bytes(data[0].get("body") or b""), headers=headers), _loaded)
    context.set_response_status(response.status, HTTPStatus(response.status).phrase[:20], 0)
    context.set_response_content_type(0, response.body.content_type + _OURS)
    context.metrics = None  # MMS would log a line of its own for each request, for Java to take apart.
    return [response.body.content.ljust(_LEAST_BODY_BYTES, b"\n")]


def load(folder: Path, *, model: str, device: str) -> Worker:
    """Load the artifact that the settings in `folder` name; tell `serve` whether it can be served."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    link = Link(Path(settings["control"]), model=model)
    write_to(link.stdout)
    # What ends a call that hangs (see _timed) leaves its traceback on stderr. Not dump_traceback_later(): it starts and
    # awaits a thread for each call, which takes milliseconds where all cores are busy.
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    keep_large_blocks_apart()
    started = time.monotonic()
    try:
        predictor = Predictor.load(Path(settings["artifact"]), threads=settings["threads"], device=device)
    except (MemoryError, OutOfMemoryError):
        raise  # Not the model's fault: MMS tries again, and SageMaker unloads another model first.
    except Exception as error:
        link.failed(str(error) if isinstance(error, KennelError) else f"the model cannot be loaded: {error!r}")
        raise
    log("worker", "ready", model=model, engine=str(predictor.engine), seconds=round(time.monotonic() - started, 3))
    link.ready(embedding_length=predictor.embedding_length)
    return Worker(
        model=model,
        predictor=predictor,
        link=link,
        timeout_s=settings["timeout_s"],
        max_payload_bytes=settings["max_payload_bytes"],
        default_accept=settings["default_accept"],
        cores=Cores(folder / "claims", workers=settings["workers"]) if device == "cpu" else None,
    )


def respond(request: Request, worker: Worker) -> Response:
    """Answer one request: the translator of errors to HTTP. Nothing is raised, and no traceback leaves."""
    started, queue_s = time.perf_counter(), request.waited_s()
    if worker.cores:
        worker.cores.use(own=queue_s > _QUEUED_S)
    try:
        with _timed(worker):
            response = answer(request, worker)
    except KennelError as error:
        response = _failed(error, request)
    except Exception as error:
        log("worker", "failed", request_id=request.id, error=repr(error), traceback=traceback.format_exc())
        words = "the server failed at this request; its log has the reason under this request_id"
        response = _failed(KennelError(words), request)
    _record(request, response, worker, queue_s=queue_s, total_s=time.perf_counter() - started)
    return response


@contextmanager
def _timed(worker: Worker) -> Iterator[None]:
    # In the end SIGALRM ends this process: nothing else stops a call that hangs in native code.
    signal.setitimer(signal.ITIMER_REAL, worker.timeout_s)
    worker.link.busy()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        worker.link.idle()


def answer(request: Request, worker: Worker) -> Response:
    """Raises RequestError for what the caller can mend."""
    if len(request.body) > worker.max_payload_bytes:
        raise PayloadTooLargeError(f"the body is over the limit of {worker.max_payload_bytes} bytes")
    predictor = worker.predictor
    options = read_options(request.headers.get(ATTRIBUTES_HEADER.lower(), ""))
    accept = request.headers.get("accept", "")
    content_type = codec.choose_type(accept, default=worker.default_accept, explain=options.explain)
    options = replace(options, explain=options.explain or content_type == PNG)
    photos = codec.read_photos(request.body, request.headers.get("content-type", "application/octet-stream"))
    codec.check_together(photos, options, content_type)
    predictor.check(options)
    results = [_predict(photo, predictor, options) for photo in photos.items]
    if not photos.many and isinstance(results[0], KennelError):
        return _failed(results[0], request)  # Raised again, its traceback would hold this frame, which holds it.
    body = codec.encode(results, predictor.manifest, many=photos.many, content_type=content_type)
    _check_size(body, worker.max_payload_bytes)
    return Response(status=200, body=body, results=results, options=options)


def _check_size(body: codec.Body, most: int) -> None:
    """Raises AnswerTooLargeError for what MMS would drop this worker for (max_response_size in serve.mms)."""
    if len(body.content) > most:
        raise AnswerTooLargeError(
            f"the answer has {len(body.content)} bytes, and the limit is {most} (SAGEMAKER_MAX_PAYLOAD_IN_MB); send "
            "fewer photos in a request, or ask for less of each (top_k, embed)"
        )


def _predict(photo: bytes | KennelError, predictor: Predictor, options: Options) -> codec.Result:
    if isinstance(photo, KennelError):
        return photo
    try:
        return predictor.predict(photo, options)
    except RequestError as error:
        return error.without_frames()


def _failed(error: KennelError, request: Request) -> Response:
    return Response(
        status=error.status, body=codec.Body(content_type=JSON, content=codec.encode_error(error, request.id))
    )


def _record(request: Request, response: Response, worker: Worker, *, queue_s: float, total_s: float) -> None:
    """One log line, joined with the front's by the request's id, and the metrics."""
    model = worker.model
    predictions = [result for result in response.results if isinstance(result, Prediction)]
    target = request.headers.get(TARGET_HEADER.lower(), "")[:_MOST_LOGGED]
    if target and not worker.targets:
        worker.targets.append(target)
        metrics.TARGET.labels(model, target).set(1)
    metrics.RESPONSES.labels(model, str(response.status)).inc()
    metrics.STAGES.labels(model, "queue").observe(queue_s)
    metrics.STAGES.labels(model, "total").observe(total_s)
    for prediction in predictions:
        best = prediction.classes[0]
        metrics.STAGES.labels(model, "decode").observe(prediction.decode_s)
        metrics.STAGES.labels(model, "inference").observe(prediction.inference_s)
        metrics.PREDICTIONS.labels(model, best.label).inc()
        metrics.CONFIDENCE.labels(model).observe(best.probability)
    labels = {"labels": [prediction.classes[0].label for prediction in predictions]}
    log(
        "worker",
        "answered",
        request_id=request.id,
        model=model,
        target_model=target or None,
        status=response.status,
        bytes=len(request.body),
        photos=[f"{prediction.width}x{prediction.height}" for prediction in predictions],
        queue_ms=round(1000 * queue_s, 1),
        decode_ms=round(1000 * sum(prediction.decode_s for prediction in predictions), 1),
        inference_ms=round(1000 * sum(prediction.inference_s for prediction in predictions), 1),
        total_ms=round(1000 * total_s, 1),
        **(labels if response.options.log_label else {}),
    )
