"""Bodies and headers in, bodies out."""

from __future__ import annotations

import base64
import json

import pytest

from container.errors import KennelError, NotAcceptableError, RequestError, UnsupportedMediaTypeError
from serve import codec
from serve.api import PHOTO_TYPES


@pytest.mark.parametrize("content_type", [*PHOTO_TYPES, "IMAGE/JPEG", "image/jpeg; q=1"])
def test_a9_82_a_photo_is_a_photo_under_each_name(content_type: str) -> None:
    assert codec.read_photos(b"bytes", content_type) == codec.Photos(items=[b"bytes"], many=False)


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data; boundary=x", "application/x-npy"])
def test_a6_61_other_content_types_are_415(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="send one of image/jpeg"):
        codec.read_photos(b"", content_type)


def test_a9_82_instances_are_read_each_with_its_own_error() -> None:
    body = {"instances": [{"b64": base64.b64encode(b"one").decode()}, {"b64": "b25l\n"}, {"b64": "%"}, {"c": 1}, 7]}
    photos = codec.read_photos(json.dumps(body).encode(), "application/json")
    assert photos.many
    assert photos.items[:2] == [b"one", b"one"]
    assert all(isinstance(item, KennelError) for item in photos.items[2:])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"instances": []}',
        b'{"instances": {"b64": ""}}',
        b"[" * 200_000,
        b"\xff\xfe",
        b'{"instances": ' + b"9" * 10_000 + b"}",
        json.dumps({"instances": [{}] * (codec.MAX_INSTANCES + 1)}).encode(),
    ],
)
def test_a6_61_malformed_json_is_400(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        codec.read_photos(body, "application/json")
    assert caught.value.status == 400
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("attributes", "top_k"),
    [("", None), ("top_k=3", 3), (" top_k = 3 ", 3), ("trace=7f3c; top_k=1", 1), ("c000b4f9-df62", None)],
)
def test_a6_59_top_k_is_found_among_other_attributes(attributes: str, top_k: int | None) -> None:
    assert codec.read_options(attributes).top_k == top_k


@pytest.mark.parametrize("attributes", ["top_k=0", "top_k=-1", "top_k=x", "top_k=", "top_k=1.5", "topk=3", "top-k=3"])
def test_options_that_cannot_be_meant_are_refused(attributes: str) -> None:
    with pytest.raises(RequestError, match="top_k"):
        codec.read_options(attributes)


@pytest.mark.parametrize(
    "accept", ["", "*/*", "application/json", "text/html, application/*;q=0.2", "Application/JSON; charset=utf-8"]
)
def test_an_accept_that_allows_json_is_met(accept: str) -> None:
    codec.check_accept(accept)


@pytest.mark.parametrize("accept", ["image/png", "text/*", "application/json;q=0"])
def test_a6_61_an_accept_that_cannot_be_met_is_406(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        codec.check_accept(accept)
