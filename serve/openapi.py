"""The OpenAPI document of what is served, at /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serve import api

_STRING: Final = {"type": "string"}
_PROBABILITY: Final = {"type": "number", "minimum": 0, "maximum": 1}
_SCHEMAS: Final[Mapping[str, Any]] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": _STRING, "message": _STRING, "request_id": _STRING},
            }
        },
    },
    "Class": {
        "type": "object",
        "required": ["label", "index", "probability"],
        "properties": {
            "label": _STRING,
            "index": {"type": "integer", "minimum": 0},
            "probability": _PROBABILITY,
        },
    },
    "Result": {
        "type": "object",
        "required": ["label", "probability", "predictions"],
        "properties": {
            "label": _STRING,
            "probability": _PROBABILITY,
            "confident": {"type": "boolean"},
            "embedding": {"type": "array", "items": {"type": "number"}},
            "heat_map": {"type": "object", "required": ["b64"], "properties": {"b64": _STRING}},
            "predictions": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Class"}},
        },
    },
    "Model": {
        "type": "object",
        "required": ["architecture", "version"],
        "properties": {"architecture": _STRING, "version": _STRING},
    },
    "One": {
        "allOf": [
            {"$ref": "#/components/schemas/Result"},
            {
                "type": "object",
                "required": ["model"],
                "properties": {"model": {"$ref": "#/components/schemas/Model"}},
            },
        ]
    },
    "Many": {
        "type": "object",
        "required": ["results", "model"],
        "properties": {
            "results": {
                "type": "array",
                "items": {"oneOf": [{"$ref": "#/components/schemas/Result"}, {"$ref": "#/components/schemas/Error"}]},
            },
            "model": {"$ref": "#/components/schemas/Model"},
        },
    },
    "Instances": {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "maxItems": api.MAX_INSTANCES,
                "items": {
                    "type": "object",
                    "required": ["b64"],
                    "properties": {"b64": {"type": "string", "description": "a photo in base64"}},
                },
            }
        },
    },
    "LoadedModel": {
        "type": "object",
        "required": ["modelName", "modelUrl"],
        "properties": {"modelName": _STRING, "modelUrl": _STRING},
    },
    "LoadRequest": {
        "type": "object",
        "required": ["model_name", "url"],
        "properties": {
            "model_name": {"type": "string", "pattern": f"^{api.MODEL_NAME}$", "maxLength": api.MAX_MODEL_NAME},
            "url": {"type": "string", "description": "a local folder, such as /opt/ml/models/<hash>/model"},
        },
    },
}


def document(*, multi_model: bool) -> dict[str, Any]:
    """The document of one mode."""
    reads = {"/ping": _ping(), "/info": _read("What is served"), "/openapi.json": _read("This document")}
    reads["/execution-parameters"] = _read("How batch transform should call")
    reads["/metrics"] = _read("Figures for Prometheus", content_type="text/plain", schema=_STRING)
    invocation = {"/models/{name}/invoke": _invoke(named=True)} if multi_model else {"/invocations": _invoke()}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Kennel",
            "version": "1",
            "description": "A ResNet image classifier behind SageMaker's container contract.",
        },
        "paths": {**reads, **invocation, **(_models() if multi_model else {})},
        "components": {"schemas": _SCHEMAS},
    }


def _answer(words: str, schema: Mapping[str, Any], content_type: str = api.JSON) -> dict[str, Any]:
    return {"description": words, "content": {content_type: {"schema": schema}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _errors(*statuses: int) -> dict[str, Any]:
    words = {
        400: "not a readable photo, or a malformed request",
        404: "no such path, model or folder",
        405: "another method is meant",
        406: "nothing that Accept allows can be answered",
        408: "the body did not arrive in time",
        409: "a model of this name is loaded",
        411: "a body without a Content-Length",
        413: "the body, or what would be answered, is over the limit",
        415: "a Content-Type that is not offered",
        422: "a photo of too many pixels",
        500: "a fault of the server",
        502: "the worker broke off in its answer",
        503: "the queue is full, or no worker is ready; see Retry-After",
        504: "not answered within the deadline",
        507: "too little memory for this model, or for the photo",
    }
    return {str(status): _answer(words[status], _ref("Error")) for status in statuses}


def _read(words: str, *, content_type: str = api.JSON, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    responses = {"200": _answer(words, schema or {"type": "object"}, content_type), **_errors(400, 405, 411, 413, 503)}
    return {"get": {"summary": words, "responses": responses}}


def _ping() -> dict[str, Any]:
    return _read("Whether a worker can answer")


def _invoke(*, named: bool = False) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {
            "name": api.ATTRIBUTES_HEADER,
            "in": "header",
            "description": "top_k=3, explain=cam, embed=true, log_label=true; others are echoed and left alone, but a "
            "name that is one of these but for one character is refused as misspelt",
            "schema": {"type": "string", "maxLength": 1024, "pattern": "^[ -~]*$"},
        }
    ]
    photo = {"schema": {"type": "string", "format": "binary"}}
    one_or_many = {"oneOf": [_ref("One"), _ref("Many")]}
    answers = {
        api.JSON: {"schema": one_or_many},
        api.JSON_LINES: {"schema": _STRING},
        api.CSV: {"schema": _STRING},
        api.PNG: {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        **({"parameters": [_name()]} if named else {}),
        "post": {
            "summary": "Classify a photo, or several as JSON",
            "parameters": parameters,
            "requestBody": {
                "required": True,
                "content": {
                    **{name: photo for name in api.PHOTO_TYPES},
                    api.JSON: {"schema": _ref("Instances")},
                    api.JSON_LINES: {"schema": _STRING},
                },
            },
            "responses": {
                "200": {"description": "the classes, best first", "content": answers},
                **_errors(400, 404, 405, 406, 408, 413, 415, 422, 500, 502, 503, 504, 507),
            },
        },
    }


def _name() -> dict[str, Any]:
    return {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _models() -> dict[str, Any]:
    done = _answer("done", {"type": "object"})
    page = [
        {"name": name, "in": "query", "schema": {"type": "string"}, "description": words}
        for name, words in (("limit", "models a page"), ("next_page_token", "of the page before"))
    ]
    listed = {
        "type": "object",
        "required": ["models"],
        "properties": {"models": {"type": "array", "items": _ref("LoadedModel")}, "nextPageToken": _STRING},
    }
    return {
        "/models": {
            "get": {
                "summary": "The models that are loaded",
                "parameters": page,
                "responses": {"200": _answer("a page", listed), **_errors(400, 405, 411, 413)},
            },
            "post": {
                "summary": "Load a model",
                "requestBody": {"required": True, "content": {api.JSON: {"schema": _ref("LoadRequest")}}},
                "responses": {"200": done, **_errors(400, 404, 405, 408, 409, 411, 413, 500, 503, 504, 507)},
            },
        },
        "/models/{name}": {
            "parameters": [_name()],
            "get": {
                "summary": "One model",
                "responses": {"200": _answer("it", _ref("LoadedModel")), **_errors(400, 404, 405, 411, 413)},
            },
            "delete": {
                "summary": "Unload a model",
                "responses": {"200": done, **_errors(400, 404, 405, 411, 413, 500, 503, 504)},
            },
        },
    }
