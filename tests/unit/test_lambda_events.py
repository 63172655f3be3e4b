"""Events in, requests out: every kind of caller, and every way to send a photo."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import Refusal
from events import (
    INLINE_BYTES,
    HttpRequest,
    S3Object,
    http_request,
    is_http,
    is_s3,
    new_objects,
)
from request import Request, request_from_http, request_from_json
from tests.lambda_runtime import event
from tests.support import encoded, picture

JPEG = encoded(picture(), "JPEG")
B64 = base64.b64encode(JPEG).decode()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("direct_image", "direct"),
        ("direct_s3", "direct"),
        ("direct_url", "direct"),
        ("rest_api_photo", "http"),
        ("rest_api_json", "http"),
        ("http_api_photo", "http"),
        ("http_api_form", "http"),
        ("function_url_page", "http"),
        ("function_url_heat_map", "http"),
        ("s3_created", "s3"),
        ("s3_created_versioned", "s3"),
        ("s3_own_result", "s3"),
        ("s3_test", "s3"),
    ],
)
def test_sample_events_are_told_apart(name: str, kind: str) -> None:
    assert (is_http(event(name)), is_s3(event(name))) == (kind == "http", kind == "s3")


@pytest.mark.parametrize(
    "name", ["rest_api_photo", "rest_api_json", "http_api_photo", "http_api_form", "function_url_heat_map"]
)
def test_sample_http_events_hold_their_photo(name: str) -> None:
    photo = base64.b64decode(event("direct_image")["image"])

    assert request_from_http(http_request(event(name))).image == photo


def test_options_come_in_the_query_in_json_and_in_a_form() -> None:
    assert request_from_http(http_request(event("rest_api_photo"))).top_k == 3
    assert request_from_http(http_request(event("http_api_photo"))).top_k == 3
    assert request_from_http(http_request(event("rest_api_json"))).top_k == 2
    assert request_from_http(http_request(event("http_api_form"))).top_k == 2
    assert request_from_http(http_request(event("function_url_heat_map"))).explain


def test_a_binary_body_that_an_api_turned_into_text_is_told_as_such() -> None:
    with pytest.raises(Refusal, match="binary media types") as error:
        http_request(event("rest_api_destroyed"))

    assert error.value.status == 415


def test_keys_of_notifications_are_decoded_and_removals_are_not_new() -> None:
    photo = S3Object(bucket="photos", key="new/rex at the sea (été).jpg")
    assert new_objects(event("s3_created")) == [photo]
    assert new_objects(event("s3_created_versioned")) == [replace(photo, version="096fKKXTRTtl3on89fVO.nfljtsv6qko")]
    assert new_objects(event("s3_removed")) == new_objects(event("s3_test")) == []


@pytest.mark.parametrize(
    "value",
    [
        {"image": B64},
        {"image": f"data:image/jpeg;base64,{B64}"},
        {"image": "\n".join(B64[i : i + 76] for i in range(0, len(B64), 76))},
    ],
)
def test_base64_is_taken_plain_wrapped_and_as_a_data_url(value: dict[str, Any]) -> None:
    assert request_from_json(value) == Request(image=JPEG)


def test_locations_are_taken() -> None:
    assert request_from_json(event("direct_s3")).s3 == S3Object(bucket="photos", key="dogs/rex.jpg")
    assert (request_from_json(event("direct_url")).url or "").startswith("https://s3.amazonaws.com/")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "found none of them"),
        ([], "the JSON is a list"),
        (None, "the JSON is a NoneType"),
        ("text", "the JSON is a str"),
        ({"image": B64, "url": "https://a.example/b"}, "'image' and 'url'"),
        ({"imgae": B64}, "did you mean 'image'?"),
        ({"image_url": "https://a.example/b", "quiz": 1}, "is unknown"),
        ({"image": "not base64!"}, "is not base64"),
        ({"image": 3}, "'image' is a int"),
        ({"url": ["https://a.example/b"]}, "'url' is a list"),
        ({"s3": "photos/rex.jpg"}, "expected s3://bucket/key"),
        ({"s3": "s3://photos/"}, "expected s3://bucket/key"),
        ({"s3": "s3://photos/" + "k" * 1025}, "expected s3://bucket/key"),
        ({"s3": "s3://photos/half-a-pair-\ud83d"}, "expected s3://bucket/key"),
        ({"image": B64, "top_k": 0}, "'top_k' is '0'"),
        ({"image": B64, "top_k": True}, "'top_k' is 'True'"),
        ({"image": B64, "top_k": "3; explain=cam"}, "a whole number"),
        ({"image": B64, "explain": "lime"}, "can only be 'cam'"),
    ],
)
def test_json_that_asks_for_nothing_we_do_is_a_400_that_says_why(value: Any, said: str) -> None:
    with pytest.raises(Refusal) as error:
        request_from_json(value)

    assert error.value.status == 400
    assert said in error.value.message


def test_a_long_name_is_not_said_back_at_length() -> None:
    with pytest.raises(Refusal, match="is unknown") as error:
        request_from_json({"x" * 1_000_000: B64})

    assert len(error.value.message) < 500


def test_a9_86_a_photo_that_no_lambda_payload_holds_is_a_413_with_the_limit_of_that_path() -> None:
    with pytest.raises(Refusal, match=f"{INLINE_BYTES:,}") as error:
        request_from_json({"image": base64.b64encode(bytes(INLINE_BYTES + 1)).decode()})

    assert error.value.status == 413
    assert 4_500_000 < INLINE_BYTES < 6 * 1024 * 1024 * 3 / 4


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "", "text/plain"]
)
def test_a_photo_is_a_photo_whatever_it_is_called(content_type: str) -> None:
    assert request_from_http(_post(JPEG, content_type)).image == JPEG


@pytest.mark.parametrize("content_type", ["text/plain", "image/jpeg", "application/octet-stream", ""])
def test_base64_without_json_is_taken_too(content_type: str) -> None:
    assert request_from_http(_post(B64.encode(), content_type)).image == JPEG


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"", "image/jpeg", 400, "the body is empty"),
        (b"hello", "text/plain", 415, "'text/plain'"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"hello", "multipart/form-data", 400, "the form has no parts"),
        (b"--b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", 400, "is unknown"),
    ],
)
def test_bodies_that_hold_no_photo(body: bytes, content_type: str, status: int, said: str) -> None:
    with pytest.raises(Refusal) as error:
        request_from_http(_post(body, content_type))

    assert error.value.status == status
    assert said in error.value.message


@pytest.mark.parametrize(
    ("boundary", "part"),
    [
        ("boundary*=undefined''X", ""),
        ("boundary=X\ud800", ""),
        ("boundary=X", "Content-Disposition: form-data; name=a; filename*=undefined''rex.jpg"),
        ("boundary=X", "Content-Disposition: form-data; name=a; filename*=idna''%ff.jpg"),
        ("boundary=X", f"Content-Disposition: form-data; name=a; filename*{'9' * 5000}*=rex.jpg"),
        ("boundary=X", "Content-Type: message/rfc822\r\n\r\n" * 2000),
    ],
)
def test_a_form_that_breaks_its_reader_is_a_400(boundary: str, part: str) -> None:
    body = f"--X\r\n{part}\r\n\r\n".encode() + JPEG + b"\r\n--X--"
    with pytest.raises(Refusal, match="the form cannot be read") as error:
        request_from_http(_post(body, f"multipart/form-data; {boundary}"))

    assert error.value.status == 400


TYPES = st.sampled_from(["multipart/form-data; boundary=X", "multipart/form-data", "application/json"]) | st.text()


@given(before=st.binary(), after=st.binary(), content_type=TYPES | TYPES.map("multipart/form-data; ".__add__))
def test_no_body_of_any_type_breaks_the_reading(before: bytes, after: bytes, content_type: str) -> None:
    body = before + b'--X\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n' + after + b"\r\n--X--"
    for whole in (body, before):
        with contextlib.suppress(Refusal):
            request_from_http(_post(whole, content_type))


def test_a_form_may_call_its_file_anything_but_holds_one() -> None:
    one = _form(("whatever", "<img onerror=1>.jpg", JPEG))
    assert request_from_http(one).image == JPEG
    with pytest.raises(Refusal, match="2 files"):
        request_from_http(_form(("a", "a.jpg", JPEG), ("b", "b.jpg", JPEG)))


def test_a_form_may_hold_a_location_instead_of_a_file() -> None:
    assert request_from_http(_form(("url", None, b"https://a.example/b"))).url == "https://a.example/b"


@pytest.mark.parametrize(
    ("accept", "explain"),
    [("", False), ("*/*", False), ("application/json", False), ("image/png", True), ("image/*;q=0.8", True)],
)
def test_accept_chooses_between_answer_and_heat_map(accept: str, explain: bool) -> None:
    assert request_from_http(_post(JPEG, "image/jpeg", accept=accept)).explain is explain


def test_an_accept_that_cannot_be_met_is_a_406() -> None:
    with pytest.raises(Refusal) as error:
        request_from_http(_post(JPEG, "image/jpeg", accept="text/html"))

    assert error.value.status == 406


def test_a_query_that_we_do_not_know_is_an_error() -> None:
    with pytest.raises(Refusal, match="did you mean 'top_k'"):
        request_from_http(HttpRequest(method="POST", query={"topk": "3"}, body=JPEG))


def test_a9_83_proxy_events_may_hold_null_instead_of_headers_query_and_body() -> None:
    bare = {**event("rest_api_photo"), "headers": None, "queryStringParameters": None, "body": None}

    assert http_request(bare) == HttpRequest(method="POST")


def test_a_number_of_any_size_is_read() -> None:
    body = json.dumps({"image": B64, "top_k": 10**30}).encode()
    with pytest.raises(Refusal, match="a whole number"):
        request_from_http(_post(body, "application/json"))


def _post(body: bytes, content_type: str, accept: str = "*/*") -> HttpRequest:
    return HttpRequest(method="POST", headers={"content-type": content_type, "accept": accept}, body=body)


def _form(*parts: tuple[str, str | None, bytes]) -> HttpRequest:
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename else ""
        body += f'--X\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return _post(body + b"--X--\r\n", "multipart/form-data; boundary=X")
