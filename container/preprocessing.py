"""Photo bytes -> array: the one function of evaluation in training and of serving.

A photo is decoded (large JPEGs at a reduced DCT scale), its centre is resized in one step to the network's input,
its EXIF orientation is applied, and its channels are normalised. Training's random transforms start from the
same decoder, `open_photo`.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from container.errors import ArtifactError, PhotoError, PhotoTooLargeError

Float32Array = npt.NDArray[np.float32]

# Formats outside this list are never handed to a decoder. (MPO, which many phones write as .jpg, opens as JPEG.)
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# What decoding one photo may take: 64 megapixels as RGB, which a 1 GB serverless container has beside its model.
MAX_DECODED_BYTES: Final = 256_000_000
MAX_PIXELS: Final = MAX_DECODED_BYTES // 4
# Measured, of a pixel: Pillow keeps RGB in 4 bytes; other modes are kept while their RGB copy grows beside them.
_MODE_BYTES: Final = {"1": 5, "L": 4, "I;16": 4, "P": 5, "RGB": 4}
_OTHER_MODE_BYTES: Final = 8
# Pillow reads a WebP as an animation, with canvases and copies.
_WEBP_BYTES: Final = 17
_STRIP_PIXELS: Final = 1_000_000

_INTERPOLATIONS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_ORIENTATION_TAG: Final = 0x0112
_ORIENTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a photo becomes the network's input; stored in the manifest, so that serving has no constant of its own.

    The centre square of `crop_size / resize_size` of the photo's shorter side becomes crop_size x crop_size pixels:
    torchvision's Resize(resize_size) and CenterCrop(crop_size) in one step. `mean` and `std` are per channel
    (R, G, B) of values in 0 … 1; the defaults are those of torchvision's ImageNet weights.
    """

    resize_size: int = 256
    crop_size: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def for_image_size(cls, image_size: int) -> Preprocessing:
        """Keep ImageNet's usual ratio of 256 to 224 at other input sizes."""
        return cls(resize_size=round(image_size * 256 / 224), crop_size=image_size)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Raises ArtifactError for keys or values that this version cannot follow exactly."""
        try:
            spec = cls(**{**value, "mean": _triple(value["mean"]), "std": _triple(value["std"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"manifest.json: 'preprocessing' cannot be read ({error}): {dict(value)}") from error
        if spec.interpolation not in _INTERPOLATIONS or not 1 <= spec.crop_size <= spec.resize_size:
            raise ArtifactError(f"manifest.json: 'preprocessing' holds values out of range: {dict(value)}")
        return spec

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def silence_pillow() -> None:
    """For programs, at their start: Pillow warns of odd metadata in photos, a line each, and only the pixels count."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def preprocess(data: bytes, spec: Preprocessing) -> Float32Array:
    """Turn a photo's bytes into a normalised array of shape (3, crop_size, crop_size).

    Raises PhotoError for bytes that are no readable photo, PhotoTooLargeError for too many pixels.
    """
    return read_photo(data, spec)[0]


def read_photo(data: bytes, spec: Preprocessing) -> tuple[Float32Array, tuple[int, int]]:
    """What `preprocess` gives, and the photo's own (width, height); nothing of its many pixels is kept."""
    photo = open_photo(data, min_side=spec.resize_size)
    return normalise(centre_square(photo, spec), spec), photo.info["size"]


def open_photo(data: bytes, *, min_side: int) -> Image.Image:
    """Decode a photo to RGB or L, its orientation not yet applied (see `upright`); `info["size"]` is its full size.

    JPEGs are decoded at the smallest DCT scale (1/2, 1/4, 1/8) that leaves the shorter side at `min_side` pixels or
    more. Transparent pixels are shown on white, 16-bit greys are scaled to 8 bits, animations give their first frame.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(file)
        size = file.size
        file.draft(None, _draft_size(file, min_side))
        file.load()
        orientation = _orientation(file)
        photo = _to_rgb(file)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoTooLargeError(f"the photo has more than {MAX_PIXELS:,} pixels; scale it down") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        raise PhotoError(_unreadable(data, error)) from error
    photo.info = {"orientation": orientation, "size": size}
    return photo


def _check_pixels(photo: ImageFile) -> None:
    width, height = photo.size
    most = int(MAX_DECODED_BYTES / _bytes_per_pixel(photo))
    if width * height > most:
        raise PhotoTooLargeError(
            f"the photo has {width} x {height} pixels; of its kind ({photo.format}, {photo.mode}) at most {most:,} are "
            "decoded; scale it down"
        )


def _bytes_per_pixel(photo: ImageFile) -> float:
    """The most memory that decoding takes, by pixel of the whole photo."""
    if photo.format == "WEBP":
        return _WEBP_BYTES
    if photo.mode in ("RGB", "L") and photo.has_transparency_data:
        return _OTHER_MODE_BYTES
    if photo.format not in ("JPEG", "MPO"):
        return _MODE_BYTES.get(photo.mode, _OTHER_MODE_BYTES)
    if not photo.info.get("progressive"):
        return 4  # At most: it is decoded at a reduced scale.
    # A progressive one is kept as coefficients of 2 bytes until its last scan, by each component's share of pixels.
    sampling: list[tuple[int, int]] = [(across, down) for _, across, down, _ in photo.layer]  # type: ignore[attr-defined]
    whole = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return max(4, 2 * sum(across * down for across, down in sampling) / whole)


def _draft_size(photo: Image.Image, min_side: int) -> tuple[int, int]:
    # Pillow decodes at the largest reduction that still gives at least this size, in both directions.
    width, height = photo.size
    scale = min_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _orientation(photo: Image.Image) -> int:
    try:
        return int(photo.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return 1  # A photo with broken metadata is still a photo: viewers show it as it lies.


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I;16"):
        return _by_strips(photo, "L", lambda strip: Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8)))
    if photo.mode in ("I", "F"):
        raise PhotoError(f"the photo has 32-bit pixels (mode {photo.mode}); save it with 8 or 16 bits a channel")
    if photo.has_transparency_data:
        return _by_strips(photo, "RGB", _on_white)
    return photo if photo.mode in ("RGB", "L") else _by_strips(photo, "RGB", lambda strip: strip.convert("RGB"))


def _on_white(photo: Image.Image) -> Image.Image:
    photo = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def _by_strips(photo: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` a few rows at a time, since copies of all of them would take several times the photo's memory."""
    width, height = photo.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return convert(photo)
    whole = Image.new(mode, photo.size)
    for top in range(0, height, rows):
        whole.paste(convert(photo.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _unreadable(data: bytes, error: Exception) -> str:
    if not data:
        return "the photo is empty (0 bytes)"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "HEIC and AVIF photos are not read; send JPEG, PNG or WebP"
    if isinstance(error, UnidentifiedImageError):
        return f"the {len(data)} bytes are not a photo in a format that is read ({', '.join(FORMATS)})"
    return f"the photo is damaged or truncated: {error}"


def upright(photo: Image.Image) -> Image.Image:
    """Apply the EXIF orientation that `open_photo` found; cheap on a small image, so it comes after the resize."""
    transpose = _ORIENTATIONS.get(photo.info.get("orientation", 1))
    return photo if transpose is None else photo.transpose(transpose)


def centre_square(photo: Image.Image, spec: Preprocessing) -> Image.Image:
    """Resize the photo's centre to crop_size x crop_size, upright, RGB."""
    width, height = photo.size
    side = min(width, height) * spec.crop_size / spec.resize_size
    left, top = (width - side) / 2, (height - side) / 2
    square = photo.resize(
        (spec.crop_size, spec.crop_size),
        _INTERPOLATIONS[spec.interpolation],
        box=(left, top, left + side, top + side),
    )
    square.info = dict(photo.info)
    return upright(square).convert("RGB")


def normalise(square: Image.Image, spec: Preprocessing) -> Float32Array:
    """RGB pixels in 0 … 255 -> float32 (3, height, width), `(value / 255 - mean) / std`."""
    scale = 1 / (255 * np.asarray(spec.std, np.float32))
    offset = -np.asarray(spec.mean, np.float32) / np.asarray(spec.std, np.float32)
    pixels = np.asarray(square, np.float32) * scale.astype(np.float32) + offset
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
