"""What control answers: /ping, health for the front, /info, /execution-parameters, and multi-model calls."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from container.errors import KennelError, RequestError
from serve.control import Call, Reply
from serve.logs import log
from serve.models import Models
from serve.openapi import document


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Functions behind the paths; `models` is None outside multi-model mode."""

    ready: Callable[[], bool]
    healthy: Callable[[], bool]
    info: Callable[[], dict[str, Any]]
    execution_parameters: Callable[[], dict[str, Any]]
    metrics: Callable[[], bytes]
    models: Models | None

    def answer(self, call: Call) -> Reply:
        """The translator of errors to HTTP."""
        try:
            return self._route(call)
        except KennelError as error:
            return _error(error.status, error.code, str(error), call.request_id)
        except Exception:
            log("serve", "failed", request_id=call.request_id, path=call.path, traceback=traceback.format_exc())
            return _error(500, "internal_error", "the server failed at this request; see its log", call.request_id)

    def _route(self, call: Call) -> Reply:
        match call.path.strip("/").split("/"):
            case ["ping"]:
                return _yes_or_no(self.ready())
            case ["health"]:
                return _yes_or_no(self.healthy())
            case ["info"]:
                return Reply(HTTPStatus.OK, self.info())
            case ["execution-parameters"]:
                return Reply(HTTPStatus.OK, self.execution_parameters())
            case ["metrics"]:
                return Reply(HTTPStatus.OK, self.metrics(), content_type=CONTENT_TYPE_LATEST)
            case ["openapi.json"]:
                return Reply(HTTPStatus.OK, document(multi_model=self.models is not None))
            case ["models", *name] if self.models and len(name) < 2:
                return Reply(HTTPStatus.OK, _models(call, name[0] if name else "", self.models))
        return _error(404, "not_found", "there is nothing at this path", call.request_id)


def _yes_or_no(answer: bool) -> Reply:
    return Reply(HTTPStatus.OK if answer else HTTPStatus.SERVICE_UNAVAILABLE, {})


def _models(call: Call, name: str, models: Models) -> dict[str, Any]:
    match call.method, name:
        case "GET" | "HEAD", "":
            return models.list(call.query.get("limit", ""), call.query.get("next_page_token", ""))
        case "POST", "":
            wanted = _load_request(call.body)
            models.load(wanted["model_name"], wanted["url"])
            return {"status": f"model {wanted['model_name']!r} is loaded"}
        case "DELETE", _:
            models.unload(name)
            return {"status": f"model {name!r} is unloaded"}
    return models.get(name).to_json()


def _load_request(body: bytes) -> dict[str, str]:
    expected = 'expected {"model_name": "...", "url": "/opt/ml/models/.../model"}'
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON; {expected}") from error
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("model_name", "url")):
        raise RequestError(f"the body lacks a name or a folder; {expected}")
    return value


def _error(status: int, code: str, message: str, request_id: str) -> Reply:
    return Reply(status, {"error": {"code": code, "message": message, "request_id": request_id}})
