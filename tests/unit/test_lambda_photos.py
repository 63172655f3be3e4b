"""Photos in the function: their kind, and how those that the endpoint would refuse are made smaller."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from container.preprocessing import Preprocessing, preprocess
from deploy.lambda_zip import SOURCE
from errors import Refusal
from photos import Photo, acceptable_bytes, can_scale, fitted, sniff
from tests.lambda_runtime import AWS_ENV
from tests.support import encoded, odd_photos, picture

KINDS = {"jpg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp", "bmp": "image/bmp"}


@pytest.mark.parametrize("name", odd_photos())
def test_the_kind_of_a_photo_is_told_by_its_bytes(name: str) -> None:
    assert sniff(odd_photos()[name]) == KINDS[name.rpartition(".")[2]]


def test_what_is_no_known_kind_goes_to_the_endpoint_unnamed() -> None:
    assert Photo.of(b"\x00\x00\x00\x18ftypheic").content_type == "application/octet-stream"
    with pytest.raises(Refusal, match="0 bytes"):
        Photo.of(b"")


def test_a_photo_that_fits_is_not_touched() -> None:
    photo = Photo.of(encoded(picture(), "JPEG"))

    assert fitted(photo, len(photo.data)) is photo


@pytest.mark.parametrize(
    "name", ["plain.jpg", "rotated.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "transparent.png", "grey16.png"]
)
def test_a_photo_scaled_down_looks_the_same_to_the_network(name: str) -> None:
    large = _enlarged(odd_photos()[name])
    spec = Preprocessing()

    smaller = fitted(Photo.of(large), 200_000)

    assert len(smaller.data) <= 200_000 < len(large)
    # In normalised units, of which the range of pixels is about 4.5: no visible difference.
    difference = np.abs(preprocess(large, spec) - preprocess(smaller.data, spec))
    assert difference.mean() < 0.05
    assert Image.open(io.BytesIO(smaller.data)).getexif().get(0x0112, 1) == 1


def test_an_orientation_is_applied_once() -> None:
    photo = fitted(Photo.of(_enlarged(odd_photos()["rotated.jpg"])), 200_000)

    width, height = Image.open(io.BytesIO(photo.data)).size
    assert height > width


def test_a_transparent_photo_is_turned_too() -> None:
    """Transparency and orientation together, in every format that has both; on white as the endpoint shows it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    large = picture(1200, 900).convert("RGBA")
    large.putalpha(Image.linear_gradient("L").resize(large.size))

    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(large, kind, exif=exif.tobytes())
        smaller = fitted(Photo.of(data), min(100_000, len(data) - 1))
        difference = np.abs(preprocess(data, Preprocessing()) - preprocess(smaller.data, Preprocessing()))
        assert difference.mean() < 0.05, kind


def test_a_photo_with_broken_metadata_is_still_a_photo() -> None:
    data = encoded(picture(1200, 900), "JPEG", quality=98, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")

    assert fitted(Photo.of(data), 60_000).content_type == "image/jpeg"


LARGEST = {
    # As many pixels as are taken of each kind, near enough; the first is what a phone of 108 megapixels writes.
    "JPEG": lambda: encoded(Image.new("RGB", (12_000, 9_000)), "JPEG"),
    "progressive JPEG": lambda: encoded(Image.new("RGB", (7_000, 5_500)), "JPEG", progressive=True, subsampling=0),
    "PNG": lambda: encoded(Image.new("RGB", (8_000, 7_400)), compress_level=1),
    "transparent PNG": lambda: encoded(Image.new("RGBA", (6_500, 5_100)), compress_level=1),
    "16 bits": lambda: encoded(Image.new("I;16", (5_700, 4_300)), compress_level=1),
    "palette": lambda: encoded(Image.new("P", (5_700, 4_300)), transparency=3),
}
# Prints the peak in MB of a function that has its clients and a photo of 50 MB, and scales one of `LARGEST` down.
SCALING = """
import pathlib, sys
from config import Config
from endpoint import Buckets, SageMakerEndpoint
from photos import SCALABLE_BYTES, Photo, fitted
parts = SageMakerEndpoint("dogs", read_timeout_s=1), Buckets(frozenset({"photos"}), timeout_s=1)
data = sys.stdin.buffer.read()
ballast = b"x" * (SCALABLE_BYTES - len(data))
fitted(Photo.of(data), 40_000)
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGEST)
def test_the_functions_memory_suffices_for_the_largest_photos(kind: str) -> None:
    env = {**os.environ, **AWS_ENV, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run((sys.executable, "-c", SCALING), input=LARGEST[kind](), capture_output=True, env=env)

    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 480  # Of 512; Lambda's own runtime takes the rest.


def test_without_pillow_a_photo_over_the_limit_is_a_413_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # As in a zip that was built without it.
    can_scale.cache_clear()
    try:
        with pytest.raises(Refusal, match="at most 1,000") as error:
            fitted(Photo(bytes(1001)), 1000)
        assert acceptable_bytes(1000) == 1000
    finally:
        can_scale.cache_clear()

    assert error.value.status == 413


def test_what_is_large_and_no_photo_is_refused() -> None:
    with pytest.raises(Refusal) as error:
        fitted(Photo(b"\xff\xd8\xff" + bytes(400_000)), 200_000)

    assert (error.value.status, error.value.code) == (400, "unreadable_photo")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(bomb, "PNG")

    with pytest.raises(Refusal) as error:
        fitted(Photo.of(bomb.getvalue()), 1000)

    assert (error.value.status, error.value.code) == (422, "photo_too_large")


def _enlarged(data: bytes) -> bytes:
    """The same picture with more pixels, of the same mode, kind and orientation; with noise, so that it is large."""
    photo = Image.open(io.BytesIO(data))
    large = photo.convert("RGB") if photo.mode == "P" else photo
    pixels = np.asarray(large.resize((photo.width * 12, photo.height * 12), Image.Resampling.NEAREST))
    step = 512 if pixels.dtype == np.uint16 else 2
    noise = np.random.default_rng(0).integers(0, step, pixels.shape).astype(pixels.dtype)
    noisy = Image.frombytes(
        large.mode, (pixels.shape[1], pixels.shape[0]), (np.maximum(pixels, step) - noise).tobytes()
    )
    buffer = io.BytesIO()
    options = {"quality": 98, "exif": photo.info.get("exif", b"")} if photo.format == "JPEG" else {}
    (noisy.quantize(256) if photo.mode == "P" else noisy).save(buffer, photo.format, **options)
    return buffer.getvalue()
