"""Photo bytes -> array."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from container.errors import ArtifactError, PhotoError, PhotoTooLargeError
from container.preprocessing import MAX_DECODED_BYTES, MAX_PIXELS, Preprocessing, open_photo, preprocess
from serve.shape import PHOTO_MIB
from tests.support import encoded, odd_photos, picture

SPEC = Preprocessing.for_image_size(64)


@pytest.mark.parametrize("name", odd_photos())
def test_every_kind_of_photo_becomes_a_normalised_array(name: str) -> None:
    array = preprocess(odd_photos()[name], SPEC)
    assert array.shape == (3, 64, 64)
    assert array.dtype == np.float32
    assert np.isfinite(array).all()
    assert array.std() > 0.1


def test_equals_resize_then_centre_crop_where_neither_needs_to_round() -> None:
    spec = Preprocessing(resize_size=80, crop_size=64)
    photo = picture(600, 400)
    resized = photo.resize((120, 80), Image.Resampling.BILINEAR)
    usual = np.asarray(resized.crop((28, 8, 92, 72)), np.float32) / 255
    ours = preprocess(encoded(photo), spec).transpose(1, 2, 0) * spec.std + spec.mean
    assert np.abs(ours - usual).max() < 2 / 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly(orientation: int) -> None:
    photo = picture(121, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = encoded(photo, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(tagged)))
    upright.info = {}
    np.testing.assert_allclose(preprocess(tagged, SPEC), preprocess(encoded(upright), SPEC), atol=0.02)


def test_large_jpegs_are_decoded_at_a_reduced_scale() -> None:
    photo = open_photo(encoded(picture(4000, 3000), "JPEG"), min_side=256)
    assert photo.size == (500, 375)


def test_transparent_pixels_are_shown_on_white() -> None:
    clear = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    assert open_photo(encoded(clear), min_side=1).getpixel((25, 25)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "hidden"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_colour_that_a_png_declares_transparent_is_white_too(mode: str, hidden: int | tuple[int, int, int]) -> None:
    declared = encoded(Image.new(mode, (20, 20), hidden), transparency=hidden)
    assert open_photo(declared, min_side=1).getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bit_greys_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((20, 20), 0x80FF, np.uint16))
    assert open_photo(encoded(grey), min_side=1).getpixel((5, 5)) == 0x80


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GIF89a" + b"\0" * 20, "photo"),
        (b"hello, world", "not a photo in a format that is read"),
        (encoded(picture(), "JPEG")[:800], "damaged or truncated"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
        (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "32-bit"),
    ],
)
def test_what_is_no_photo_is_said_in_a_sentence(data: bytes, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        preprocess(data, SPEC)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = bytearray(encoded(picture()))
    png[16:29] = header
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(PhotoTooLargeError, match=f"{MAX_PIXELS:,}"):
        preprocess(bytes(png), SPEC)


def flat(mode: str, pixels: float, kind: str, **options: object) -> bytes:
    """A square photo of one colour: few bytes, many pixels."""
    side = int(pixels**0.5)
    return encoded(Image.new(mode, (side, side)), kind, **options)


WEBP: dict[str, object] = {"lossless": True, "quality": 0, "method": 0}
KINDS: list[tuple[str, float, str, dict[str, object]]] = [
    ("RGB", 4, "PNG", {}),
    ("1", 5, "PNG", {}),
    ("P", 5, "GIF", {}),
    ("LA", 8, "PNG", {}),
    ("CMYK", 8, "TIFF", {"compression": "tiff_lzw"}),
    ("RGBA", 17, "WEBP", WEBP),
    ("RGB", 6, "JPEG", {"progressive": True, "subsampling": 0}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "per_pixel", "kind", "options"), KINDS)
def test_no_photo_takes_more_memory_than_serving_plans_for(
    tmp_path: Path, mode: str, per_pixel: float, kind: str, options: dict[str, object]
) -> None:
    """Measured in a process of its own, at the most pixels of each kind that are decoded."""
    path = tmp_path / "photo"
    path.write_bytes(flat(mode, 0.99 * MAX_DECODED_BYTES / per_pixel, kind, **options))
    script = (
        "import sys, resource, pathlib; from container.preprocessing import Preprocessing, preprocess, silence_pillow;"
        "silence_pillow(); data = pathlib.Path(sys.argv[1]).read_bytes();"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "before = peak(); preprocess(data, Preprocessing()); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < PHOTO_MIB * 1.05


def test_more_pixels_than_their_kind_may_have_are_refused() -> None:
    for mode, per_pixel, kind, options in KINDS[-2:]:
        with pytest.raises(PhotoTooLargeError, match=rf"of its kind \({kind}, {mode}\) at most [0-9,]+ are decoded"):
            open_photo(flat(mode, 1.01 * MAX_DECODED_BYTES / per_pixel, kind, **options), min_side=64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK"])
def test_a_photo_of_many_rows_is_converted_as_a_short_one_is(mode: str) -> None:
    tall = picture(700, 3001).convert("RGB")
    if mode in ("RGBA", "LA"):
        tall.putalpha(Image.linear_gradient("L").resize(tall.size))
    tall = tall.convert(mode)
    found = np.asarray(open_photo(encoded(tall, "TIFF" if mode == "CMYK" else "PNG"), min_side=64))
    for top in (0, 1400, 2990):
        part = encoded(tall.crop((0, top, 700, top + 11)), "TIFF" if mode == "CMYK" else "PNG")
        np.testing.assert_array_equal(found[top : top + 11], np.asarray(open_photo(part, min_side=64)))


def test_broken_metadata_does_not_cost_the_photo() -> None:
    whole = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    assert preprocess(whole, SPEC).shape == (3, 64, 64)


def test_preprocessing_survives_json() -> None:
    assert Preprocessing.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(ArtifactError, match="interpolation"):
        Preprocessing.from_json({**SPEC.to_json(), "interpolation": "nearest-ish"})
