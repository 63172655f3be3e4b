"""The function as its callers see it, before boto3's real client and the wire of SageMaker's runtime endpoint."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifier import Classifier
from classify import Application
from config import Config
from endpoint import Buckets, SageMakerEndpoint
from tests.lambda_runtime import (
    ENDPOINT,
    SECRETS,
    Behaviour,
    Call,
    Context,
    Reply,
    RuntimeStandIn,
    body_of,
    container_error,
    event,
    model_error,
    photo_answer,
    service_error,
)
from tests.support import encoded, picture
from urls import Fetcher

JPEG = encoded(picture(), "JPEG")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeStandIn]:
    with RuntimeStandIn() as stand_in:
        for name, value in stand_in.env.items():
            monkeypatch.setenv(name, value)
        yield stand_in


def function(*, read_timeout_s: float = 5, **settings: Any) -> Application:
    config = Config(endpoint_name=ENDPOINT, **settings)
    return Application(
        Classifier(
            config=config,
            endpoint=SageMakerEndpoint(ENDPOINT, read_timeout_s=read_timeout_s),
            buckets=Buckets(config.allowed_buckets, timeout_s=1),
            fetcher=Fetcher(allowed_hosts=config.allowed_url_hosts, timeout_s=1),
        )
    )


def post(body: bytes = JPEG, *, method: str = "POST", headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A function URL's event."""
    template = event("function_url_heat_map")
    http = {**template["requestContext"]["http"], "method": method}
    return {
        **template,
        "rawQueryString": "",
        "queryStringParameters": {},
        "headers": {"content-type": "image/jpeg", "accept": "*/*", **(headers or {})},
        "requestContext": {**template["requestContext"], "http": http},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def test_a_direct_call_is_answered_without_any_wrapping(runtime: RuntimeStandIn) -> None:
    answer = function().handle(event("direct_image"), Context())

    assert answer["label"] == "Affenpinscher"
    assert answer["probability"] == 0.91
    assert answer["confident"] is True
    assert [prediction["index"] for prediction in answer["predictions"]] == [0, 1, 2]
    assert answer["model"] == {"architecture": "resnet18", "version": "3"}
    assert answer["request_id"] == Context().aws_request_id


def test_the_endpoint_gets_the_photo_itself_its_kind_and_the_request_id(runtime: RuntimeStandIn) -> None:
    function(top_k=3).handle(event("direct_image"), Context())

    (call,) = runtime.calls
    assert call.endpoint == ENDPOINT
    assert call.body == base64.b64decode(event("direct_image")["image"])
    assert call.attributes == "top_k=3"
    assert call.headers["content-type"] == "image/jpeg"
    assert call.headers["accept"] == "application/json"
    assert call.headers["x-amzn-sagemaker-inference-id"] == Context().aws_request_id


def test_without_top_k_the_model_says_how_many(runtime: RuntimeStandIn) -> None:
    function().handle(event("direct_image"), Context())

    assert "x-amzn-sagemaker-custom-attributes" not in runtime.calls[0].headers


def test_a_callers_top_k_beats_the_functions(runtime: RuntimeStandIn) -> None:
    function(top_k=9).handle(event("rest_api_photo"), Context())

    assert runtime.calls[0].attributes == "top_k=3"


@pytest.mark.parametrize("name", ["rest_api_photo", "rest_api_json", "http_api_photo", "http_api_form"])
def test_apis_and_function_urls_are_answered_in_json(runtime: RuntimeStandIn, name: str) -> None:
    response = function().handle(event(name), Context())

    assert (response["statusCode"], response["isBase64Encoded"]) == (200, False)
    assert response["headers"] == {"Content-Type": "application/json", "Cache-Control": "no-store"}
    assert json.loads(response["body"])["label"] == "Affenpinscher"


def test_a_heat_map_is_a_png(runtime: RuntimeStandIn) -> None:
    png = encoded(picture(), "PNG")
    runtime.behave = photo_answer(heat_map=png)

    response = function().handle(event("function_url_heat_map"), Context())
    direct = function().handle({**event("direct_image"), "explain": "cam"}, Context())

    assert (response["statusCode"], response["headers"]["Content-Type"]) == (200, "image/png")
    assert body_of(response) == base64.b64decode(direct["image"]) == png
    assert {(call.attributes, call.headers["accept"]) for call in runtime.calls} == {("explain=cam", "image/png")}


def test_an_endpoint_without_heat_maps_is_a_406(runtime: RuntimeStandIn) -> None:
    runtime.behave = lambda call: photo_answer()(replace(call, headers={}))

    assert function().handle(event("function_url_heat_map"), Context())["statusCode"] == 406


def test_a9_86_an_answer_that_lambda_cannot_carry_is_a_413(runtime: RuntimeStandIn) -> None:
    runtime.behave = photo_answer(heat_map=b"\x89PNG\r\n\x1a\n" + bytes(5_000_000))

    response = function().handle(event("function_url_heat_map"), Context())

    assert response["statusCode"] == 413
    assert "5,000,008 bytes" in response["body"]


# The old callers.


def test_old_callers_get_their_shape_behind_a_setting(runtime: RuntimeStandIn) -> None:
    runtime.behave = photo_answer({"Beagle": 0.06, "Affenpinscher": 0.91, "Chow_chow": 0.03})

    answer = function(legacy_response=True).handle(event("direct_image"), Context())

    assert answer["statusCode"] == 200
    assert json.loads(answer["body"]) == [[0.06, 0.91, 0.03]]
    assert runtime.calls[0].attributes == "top_k=999999"


def test_old_callers_are_told_of_errors_too(runtime: RuntimeStandIn) -> None:
    answer = function(legacy_response=True).handle(event("direct_url"), Context())

    assert answer["statusCode"] == 403
    assert json.loads(answer["body"])["error"]["code"] == "url_not_allowed"


def test_the_page_and_new_callers_over_http_are_not_old_callers(runtime: RuntimeStandIn) -> None:
    response = function(legacy_response=True).handle(event("rest_api_photo"), Context())

    assert json.loads(response["body"])["label"] == "Affenpinscher"
    assert runtime.calls[0].attributes == "top_k=3"


# Errors, each by what causes it.

ERRORS: dict[str, tuple[Behaviour, int, str]] = {
    "unreadable": (container_error(400, "unreadable_photo", "the photo is damaged"), 400, "unreadable_photo"),
    "406": (container_error(406, "not_acceptable", "no heat map"), 406, "not_acceptable"),
    "413": (container_error(413, "payload_too_large", "at most 25 MB"), 413, "payload_too_large"),
    "415": (container_error(415, "unsupported_media_type", "send a photo"), 415, "unsupported_media_type"),
    "422": (container_error(422, "photo_too_large", "too many pixels"), 422, "photo_too_large"),
    "strange 4xx": (model_error(404, "<html>nginx</html>"), 404, "bad_request"),
    "429": (container_error(429, "throttled", "too many photos"), 429, "throttled"),
    "500": (container_error(500, "internal_error", "see the log"), 502, "endpoint_failed"),
    "502": (model_error(502, "Traceback (most recent call last): model.py"), 502, "endpoint_failed"),
    "overloaded": (container_error(503, "overloaded", "queue is full"), 503, "overloaded"),
    "deadline": (container_error(504, "timeout", "no answer in 55 s"), 504, "endpoint_timeout"),
    "60 s": (
        model_error(0, "Your invocation timed out while waiting for a response from container primary"),
        504,
        "endpoint_timeout",
    ),
    "throttled": (service_error(400, "ThrottlingException"), 429, "throttled"),
    "throttled 429": (service_error(429, "ThrottlingException"), 429, "throttled"),
    "loading": (service_error(429, "ModelNotReadyException"), 503, "model_not_ready"),
    "unavailable": (service_error(503, "ServiceUnavailable"), 503, "overloaded"),
    "internal": (service_error(500, "InternalFailure"), 502, "endpoint_failed"),
    "dependency": (service_error(530, "InternalDependencyException"), 502, "endpoint_failed"),
    "no endpoint": (service_error(400, "ValidationError"), 500, "misconfigured"),
    "no right": (service_error(403, "AccessDeniedException"), 500, "misconfigured"),
    "too large": (service_error(413, "RequestEntityTooLargeException"), 413, "payload_too_large"),
    "no classifier": (
        lambda call: Reply(200, b"[[0.1, 0.9]]", {"Content-Type": "application/json"}),
        502,
        "endpoint_failed",
    ),
    "no json": (lambda call: Reply(200, b"<html>", {"Content-Type": "application/json"}), 502, "endpoint_failed"),
    "broken off": (lambda call: None, 502, "endpoint_unreachable"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a9_81_errors_of_the_endpoint_are_mapped_and_tell_nothing_of_us(
    runtime: RuntimeStandIn, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.behave, status, code = ERRORS[name]

    response = function().handle(post(), Context())
    direct = function().handle(event("direct_image"), Context())

    error = json.loads(response["body"])["error"]
    assert (response["statusCode"], error["code"]) == (status, code)
    assert error["request_id"] == Context().aws_request_id
    assert direct == {"error": error}
    assert ("Retry-After" in response["headers"]) == (code in ("throttled", "overloaded", "model_not_ready"))
    assert response["headers"].get("Retry-After", "None") == str(error.get("retry_after_s"))
    assert_nothing_leaks(response, direct)
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (record["status"], record["code"]) == (status, code)


def assert_nothing_leaks(*answers: object) -> None:
    text = json.dumps(answers)
    assert [secret for secret in SECRETS if secret in text] == []


def test_the_log_knows_what_the_caller_is_not_told(runtime: RuntimeStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.behave = service_error(400, "ValidationError")

    function().handle(post(), Context())

    record = json.loads(capsys.readouterr().out)
    assert "account 123456789012" in record["cause"]


def test_a_message_of_the_container_reaches_its_caller(runtime: RuntimeStandIn) -> None:
    runtime.behave = container_error(400, "unreadable_photo", "the photo is damaged or truncated")

    assert "the photo is damaged or truncated" in function().handle(post(), Context())["body"]


def test_an_endpoint_that_hangs_is_a_504_and_is_asked_once(runtime: RuntimeStandIn) -> None:
    over = threading.Event()

    def hang(call: Call) -> None:
        over.wait(20)

    runtime.behave = hang
    response = function(read_timeout_s=0.3).handle(post(), Context())
    over.set()

    assert (response["statusCode"], len(runtime.calls)) == (504, 1)


def test_an_endpoint_that_is_not_there_is_a_502(runtime: RuntimeStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", "http://127.0.0.1:9")

    assert function().handle(post(), Context())["statusCode"] == 502


def test_a_connection_that_died_while_the_environment_was_frozen_is_made_anew(runtime: RuntimeStandIn) -> None:
    answers: list[Behaviour] = [lambda call: None, photo_answer()]
    runtime.behave = lambda call: answers.pop(0)(call)

    assert function().handle(post(), Context())["statusCode"] == 200


def test_an_answer_that_breaks_off_late_is_not_asked_for_again(runtime: RuntimeStandIn) -> None:
    """A second attempt would not fit into the function's own time-out."""

    def break_off(call: Call) -> None:
        threading.Event().wait(1.3)

    runtime.behave = break_off

    assert function().handle(post(), Context())["statusCode"] == 502
    assert len(runtime.calls) == 1


def test_an_endpoint_that_takes_no_connection_is_a_504(
    runtime: RuntimeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port whose queue of connections is full answers nothing, as a network that drops all packets does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        with ExitStack() as waiting:
            for _ in range(8):
                line = waiting.enter_context(socket.socket())
                line.setblocking(False)
                line.connect_ex(address)
            monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{address[1]}")
            response = function().handle(post(), Context())

    assert (response["statusCode"], runtime.calls) == (504, [])


def test_a_photo_that_is_ready_too_late_is_not_sent(runtime: RuntimeStandIn) -> None:
    """What is left of the function's time would not hold the endpoint's answer."""
    response = function(function_timeout_s=-100).handle(post(), Context())

    assert (response["statusCode"], "photo_timeout" in response["body"]) == (504, True)
    assert runtime.calls == []


def test_a_fault_of_our_own_is_a_500_without_a_traceback(
    runtime: RuntimeStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = function()
    object.__setattr__(broken.classifier, "endpoint", None)

    response = broken.handle(post(), Context())
    direct = broken.handle(event("direct_image"), Context())

    assert (response["statusCode"], direct["error"]["status"]) == (500, 500)
    assert_nothing_leaks(response, direct)
    assert "AttributeError" in json.loads(capsys.readouterr().out.splitlines()[0])["traceback"]


@pytest.mark.parametrize("value", [None, [], "text", 3, {}, {"requestContext": 1}, {"Records": []}, {"Records": [1]}])
def test_events_of_no_kind_are_answered_with_what_is_expected(runtime: RuntimeStandIn, value: Any) -> None:
    answer = function().handle(value, Context())

    assert answer["error"]["status"] == 400
    assert_nothing_leaks(answer)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
DIRECT = ("direct_image", "direct_s3", "direct_url")
HTTP = (
    "rest_api_photo",
    "rest_api_json",
    "http_api_photo",
    "http_api_form",
    "function_url_heat_map",
    "function_url_page",
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(DIRECT + HTTP), where=st.data(), value=JSON_VALUES)
def test_a_mutilated_event_is_never_our_fault_and_tells_nothing(
    runtime: RuntimeStandIn, name: str, where: st.DataObject, value: object
) -> None:
    mutilated = event(name)
    _replace_somewhere(mutilated, where, value)

    answer = function().handle(mutilated, Context())

    status = answer.get("statusCode") or answer.get("error", {}).get("status", 200)
    assert status < 500, answer
    assert_nothing_leaks(answer)


def _replace_somewhere(tree: dict[str, Any], where: st.DataObject, value: object) -> None:
    """Put `value` in the place of one member, at any depth."""
    key = where.draw(st.sampled_from(sorted(tree)))
    if isinstance(tree[key], dict) and tree[key] and where.draw(st.booleans()):
        _replace_somewhere(tree[key], where, value)
    else:
        tree[key] = value


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_a_405_that_names_ours(runtime: RuntimeStandIn, method: str) -> None:
    response = function().handle(post(method=method), Context())

    assert (response["statusCode"], response["headers"]["Allow"]) == (405, "GET, HEAD, POST")


def test_a_photo_over_the_endpoints_limit_is_scaled_down(runtime: RuntimeStandIn) -> None:
    large = encoded(picture(1600, 1200), "PNG")

    response = function(max_image_bytes=200_000).handle(post(large), Context())

    assert response["statusCode"] == 200
    assert len(runtime.calls[0].body) <= 200_000 < len(large)


# Other pages' scripts.


def test_cors_is_off_unless_configured(runtime: RuntimeStandIn) -> None:
    response = function().handle(post(headers={"origin": "https://shop.example.com"}), Context())

    assert not [name for name in response["headers"] if name.startswith("Access-Control")]


def test_cors_is_for_configured_origins_alone_and_for_their_errors_too(runtime: RuntimeStandIn) -> None:
    app = function(cors_origins=frozenset({"https://shop.example.com"}))

    def ask(origin: str, **options: Any) -> dict[str, str]:
        headers: dict[str, str] = app.handle(post(headers={"Origin": origin}, **options), Context())["headers"]
        return headers

    assert ask("https://shop.example.com")["Access-Control-Allow-Origin"] == "https://shop.example.com"
    assert ask("https://shop.example.com", body=b"")["Access-Control-Allow-Origin"] == "https://shop.example.com"
    assert ask("https://shop.example.com")["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in ask("https://evil.example")
    assert ask("https://shop.example.com", method="OPTIONS")["Access-Control-Allow-Headers"] == "Accept, Content-Type"


# The page.


def test_get_gives_the_page_under_a_policy_that_lets_only_its_own_script_run(runtime: RuntimeStandIn) -> None:
    first, second = (function().handle(event("function_url_page"), Context()) for _ in range(2))

    assert first["headers"]["Content-Type"] == "text/html; charset=utf-8"
    policy = first["headers"]["Content-Security-Policy"]
    nonces = set(re.findall(r'nonce="([^"]+)"', first["body"]))
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy
    assert "default-src 'none'" in policy
    assert first["body"] != second["body"]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", first["body"])


# What is logged.


def test_one_line_a_call_is_record_and_metrics(runtime: RuntimeStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.behave = photo_answer(confident=False)
    function().handle(event("direct_image"), Context())

    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["source"], record["status"], record["not_confident"]) == ("direct", 200, 1)
    (directive,) = record["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["function"]]
    assert {metric["Name"] for metric in directive["Metrics"]} >= {"total_ms", "endpoint_ms", "photo_bytes"}
    # Embedded metric format: each metric and dimension is a member of the line, metrics are numbers.
    assert all(isinstance(record[metric["Name"]], int | float) for metric in directive["Metrics"])
    assert isinstance(record["function"], str)


def test_a_function_time_out_that_does_not_fit_the_setting_is_told_in_the_log(
    runtime: RuntimeStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    function().handle(event("direct_image"), Context(remaining_ms=3_000))
    function().handle(event("direct_image"), Context())

    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "FUNCTION_TIMEOUT_S is 75" in first["warning"]
    assert "warning" not in second


def test_no_answer_of_any_kind_tells_anything_of_us(runtime: RuntimeStandIn) -> None:
    names = (*DIRECT, *HTTP, "rest_api_destroyed")
    assert_nothing_leaks(*(function().handle(event(name), Context()) for name in names))
