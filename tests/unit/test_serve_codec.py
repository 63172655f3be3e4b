"""Bodies and headers in, bodies out."""

from __future__ import annotations

import base64
import json

import pytest

from container.errors import KennelError, NotAcceptableError, RequestError, UnsupportedMediaTypeError
from serve import codec
from serve.api import CSV, JSON, JSON_LINES, MAX_INSTANCES, PHOTO_TYPES, PNG
from serve.options import Options, read_options


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
        json.dumps({"instances": [{}] * (MAX_INSTANCES + 1)}).encode(),
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
    assert read_options(attributes).top_k == top_k


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        *((name, "top_k") for name in ("topk", "top-k", "top_kk", "TopK", "TOP_K", "tpo_k", "top_n")),
        *((name, "explain") for name in ("explian", "explan", "exlpain", "explains", "Explain")),
        *((name, "embed") for name in ("embd", "embedd", "emebd")),
        *((name, "log_label") for name in ("log-label", "loglabel", "log_lable", "log_labels")),
    ],
)
def test_a_misspelt_option_is_named(misspelt: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"'{misspelt}', which is unknown; did you mean '{meant}'"):
        read_options(f"{misspelt}=true")


@pytest.mark.parametrize("name", ["log_level", "tok", "stop_k", "explained", "label", "embedding", "top", "k", "plain"])
def test_a_caller_s_own_attribute_is_left_alone(name: str) -> None:
    assert read_options(f"{name}=x, top_k=2") == Options(top_k=2)


@pytest.mark.parametrize("attributes", ["top_k=0", "top_k=-1", "top_k=x", "top_k=", "top_k=1.5"])
def test_options_that_cannot_be_meant_are_refused(attributes: str) -> None:
    with pytest.raises(RequestError, match="top_k"):
        read_options(attributes)


@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ("explain=cam", Options(explain=True)),
        ("embed=true;top_k=2", Options(embed=True, top_k=2)),
        ("embed=false, log_label=true", Options(log_label=True)),
    ],
)
def test_options_are_read(attributes: str, options: Options) -> None:
    assert read_options(attributes) == options


@pytest.mark.parametrize("attributes", ["explain=gradcam", "embed=yes", "embeds=true", "log_label=1"])
def test_options_with_other_values_are_refused(attributes: str) -> None:
    with pytest.raises(RequestError):
        read_options(attributes)


@pytest.mark.parametrize(
    ("accept", "explain", "chosen"),
    [
        ("", False, JSON),
        ("*/*", False, JSON),
        ("Application/JSON; charset=utf-8", False, JSON),
        ("text/html, application/*;q=0.2", False, JSON),
        ("text/csv", False, CSV),
        ("text/*", False, CSV),
        ("application/jsonlines", False, JSON_LINES),
        ("application/json;q=0.1, text/csv;q=0.9", False, CSV),
        ("*/*, application/json;q=0", False, JSON_LINES),
        ("image/png", False, PNG),
        ("", True, PNG),
        ("*/*", True, PNG),
        ("application/json", True, JSON),
    ],
)
def test_the_answer_s_type_is_what_the_caller_likes_best(accept: str, explain: bool, chosen: str) -> None:
    assert codec.choose_type(accept, explain=explain) == chosen


@pytest.mark.parametrize(
    ("accept", "chosen"), [("", CSV), ("*/*", CSV), (" , ", CSV), ("application/*", JSON), ("text/html, */*", JSON)]
)
def test_a6_62_the_default_type_is_for_callers_who_name_none(accept: str, chosen: str) -> None:
    assert codec.choose_type(accept, default=CSV) == chosen


@pytest.mark.parametrize("accept", ["image/*", "text/html", "application/json;q=0", "image/jpeg", "rubbish"])
def test_a6_61_an_accept_that_cannot_be_met_is_406(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        codec.choose_type(accept)


@pytest.mark.parametrize(
    ("many", "options", "content_type"),
    [
        (True, Options(explain=True), JSON),
        (True, Options(), PNG),
        (False, Options(embed=True), CSV),
        (False, Options(explain=True), CSV),
    ],
)
def test_wishes_that_exclude_each_other_are_406(many: bool, options: Options, content_type: str) -> None:
    with pytest.raises(NotAcceptableError):
        codec.check_together(codec.Photos(items=[b""], many=many), options, content_type)


def test_json_lines_are_read_each_with_its_own_error() -> None:
    photos = codec.read_photos(b'{"b64": "b25l"}\n\n{"b64"\n{"b64": "dHdv"}\n', JSON_LINES)
    assert photos.many
    assert [item for item in photos.items if isinstance(item, bytes)] == [b"one", b"two"]
    assert isinstance(photos.items[1], RequestError)
