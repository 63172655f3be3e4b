"""Hostile input to decoder and codec: whatever comes, an answer or a 4xx, and no growth of memory."""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sklearn.datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from container.artifact import load_manifest
from container.errors import OutOfMemoryError
from container.preprocessing import Float32Array
from serve.api import ATTRIBUTES_HEADER, CONTENT_TYPES
from serve.handler import Request, Worker, respond
from serve.link import Link
from serve.predictor import Predictor
from tests.serving import write_artifact
from tests.support import encoded, odd_photos, picture


def real_photos() -> list[bytes]:
    """Two that scikit-learn ships, and some of the folder KENNEL_PHOTOS."""
    paths = sorted(Path(sklearn.datasets.__file__).parent.glob("images/*.jpg"))
    if folder := os.environ.get("KENNEL_PHOTOS"):
        paths += sorted(Path(folder).rglob("*.jpg"))[::40][:6]
    return [path.read_bytes() for path in paths]


PHOTOS = [photo for name, photo in sorted(odd_photos().items()) if name != "large.jpg"] + real_photos()
JPEG = odd_photos()["plain.jpg"]
QUICKLY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=250)
THOROUGHLY = settings(QUICKLY, max_examples=5000)


class NoLink(Link):
    """A worker's end of a line that leads nowhere: `serve` is not part of these tests."""

    def __init__(self) -> None:
        pass

    def _send(self, **fields: object) -> None:
        pass


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    folder: Path = tmp_path_factory.mktemp("artifact")
    write_artifact(folder)
    assert load_manifest(folder)
    return Worker(
        model="model",
        predictor=Predictor.load(folder, threads=1),
        link=NoLink(),
        timeout_s=60,
        max_payload_bytes=2**25,
        default_accept="",
    )


def status(worker: Worker, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> int:
    response = respond(Request(body=body, headers={"content-type": content_type, **(headers or {})}), worker)
    assert response.status == 200 or 400 <= response.status < 500, response.body.content[:500]
    if response.status != 200:
        assert set(json.loads(response.body.content)["error"]) == {"code", "message", "request_id"}
    return response.status


class FullGpu:
    """An engine whose device has no memory left."""

    outputs: frozenset[str] = frozenset(("logits",))

    def width(self, output: str) -> int | None:
        return None

    def run(self, photos: Float32Array, outputs: Sequence[str]) -> list[Float32Array]:
        raise OutOfMemoryError("the GPU has too little memory for this")


def test_a7_70_and_a7_72_a_gpu_without_memory_is_507(worker: Worker) -> None:
    full = replace(worker, predictor=replace(worker.predictor, engine=FullGpu()))
    response = respond(Request(body=JPEG, headers={"content-type": "image/jpeg"}), full)
    assert response.status == 507
    assert json.loads(response.body.content)["error"]["code"] == "insufficient_memory"
    with pytest.raises(OutOfMemoryError):  # At the warm-up, too, it is not the artifact's fault.
        full.predictor.warm_up()


@st.composite
def mutated_photos(draw: st.DrawFn) -> bytes:
    """A real photo, cut, overwritten, spliced or with another's head."""
    photo = bytearray(draw(st.sampled_from(PHOTOS)))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(0, len(photo) - 1)))
        match draw(st.sampled_from(["cut", "overwrite", "insert", "splice"])):
            case "cut":
                del photo[place : place + draw(st.integers(1, 64))]
            case "overwrite":
                photo[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
            case "insert":
                photo[place:place] = draw(st.binary(max_size=32))
            case "splice":
                photo[place:] = draw(st.sampled_from(PHOTOS))[place:]
    return bytes(photo)


@QUICKLY
@given(photo=mutated_photos())
def test_mutated_photos_never_break_a_worker(worker: Worker, photo: bytes) -> None:
    status(worker, photo, "application/octet-stream")


@QUICKLY
@given(body=st.binary(max_size=2000), content_type=st.sampled_from(CONTENT_TYPES) | st.text(max_size=40))
def test_any_bytes_of_any_type_never_break_a_worker(worker: Worker, body: bytes, content_type: str) -> None:
    status(worker, body, content_type)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["instances", "b64", "x"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@QUICKLY
@given(value=JSON_VALUES)
def test_any_json_never_breaks_a_worker(worker: Worker, value: object) -> None:
    status(worker, json.dumps(value).encode(), "application/json")
    status(worker, json.dumps({"instances": value}).encode(), "application/json")


@QUICKLY
@given(attributes=st.text(max_size=60) | st.from_regex(r"(top_k|explain|embed)=.{0,10}"), accept=st.text(max_size=60))
def test_any_headers_never_break_a_worker(worker: Worker, attributes: str, accept: str) -> None:
    status(worker, PHOTOS[0], "image/jpeg", {ATTRIBUTES_HEADER.lower(): attributes, "accept": accept})


def bomb(width: int, height: int, mode: str = "1") -> bytes:
    return encoded(Image.new(mode, (width, height)))


def png_with_a_lie(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose head claims a size that its data does not have."""
    photo = bytearray(encoded(picture(8, 8)))
    photo[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    photo[29:33] = zlib.crc32(photo[12:29]).to_bytes(4, "big")
    return bytes(photo)


def text_bomb() -> bytes:
    """A PNG with a compressed text of 200 MB."""
    photo = encoded(picture(8, 8))
    content = b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000, 9)
    chunk = b"zTXt" + content
    return photo[:33] + len(content).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + photo[33:]


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (bomb(16_000, 16_000), 422),
        (bomb(30_000, 30_000), 422),
        (png_with_a_lie(60_000, 60_000), 422),
        (png_with_a_lie(5_000, 5_000), 400),
        (encoded(Image.new("L", (1, 60_000))), 200),
        (b"GIF89a" + JPEG, 400),
        (JPEG + b"PK\x03\x04" + b"<?php ?><script>" * 100, 200),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400),
        (b"%PDF-1.4 %%EOF", 400),
        (b"\x93NUMPY\x01\x00" + b"x" * 100, 400),
        (b"\x80\x04\x95cposix\nsystem\n", 400),
    ],
)
def test_bombs_lies_and_polyglots_are_answered(worker: Worker, photo: bytes, expected: int) -> None:
    assert status(worker, photo, "application/octet-stream") == expected


def test_a_photo_with_a_compressed_text_of_200_mb_does_not_unpack_it(worker: Worker) -> None:
    photo = text_bomb()
    tracemalloc.start()
    try:
        assert status(worker, photo, "image/png") == 400
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"instances":' * 100_000,
        b'{"instances": [' + b'{"b64": ""},' * 100_000 + b'{"b64": ""}]}',
        b'{"instances": [{"b64": "' + b"A" * 10_000_000 + b'"}]}',
        b'{"instances": [1e999999, NaN, Infinity]}',
        json.dumps({"instances": [{"b64": base64.b64encode(bomb(16_000, 16_000)).decode()}]}).encode(),
    ],
)
def test_json_bombs_are_answered(worker: Worker, body: bytes) -> None:
    status(worker, body, "application/json")


@pytest.mark.parametrize("photo", [b"no photo", JPEG[:300], bomb(16_000, 16_000), png_with_a_lie(5_000, 5_000)])
def test_nothing_of_a_refused_request_waits_for_the_garbage_collector(worker: Worker, photo: bytes) -> None:
    """Bodies of megabytes would: in a cycle with the refusal's traceback they live on, among blocks of later ones."""
    instances = json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()}, {"b64": "?"}, 1]}).encode()
    refused = [
        (photo, "image/jpeg"),
        (photo, "text/plain"),
        (instances, "application/json"),
        (photo, "application/json"),
    ]
    gc.collect()
    gc.disable()
    try:
        for body, content_type in refused:
            status(worker, body, content_type)
            status(worker, body, content_type, {"accept": "text/csv"})
            status(worker, body, content_type, {ATTRIBUTES_HEADER.lower(): "top_k=no"})
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.slow
def test_thousands_of_mutated_photos_take_no_memory(worker: Worker) -> None:
    seen: list[bytes] = []

    @THOROUGHLY
    @given(photo=mutated_photos())
    def run(photo: bytes) -> None:
        status(worker, photo, "application/octet-stream")
        seen.append(photo)

    def again() -> int:
        """The same photos once more, without hypothesis, which keeps memory of its own; resident MiB after them."""
        for photo in seen[::5]:
            status(worker, photo, "application/octet-stream")
        gc.collect()
        return _resident_mib()

    run()
    assert len(seen) >= 1000
    before = again()
    after = [again() for _ in range(4)]
    assert min(after) - before < 32, after


def _resident_mib() -> int:
    for line in io.StringIO(Path("/proc/self/status").read_text()):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("/proc/self/status has no VmRSS")
