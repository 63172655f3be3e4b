"""A photo's bytes: what kind they are, and how they are made to fit the endpoint."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from errors import Refusal, bad_request, too_large

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_MAGIC: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"BM": "image/bmp",
    b"GIF8": "image/gif",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
# Anything else goes under this name: the endpoint looks into the bytes itself.
ANY_PHOTO: Final = "application/octet-stream"

# A photo to be scaled down is held and decoded in the function's memory: 512 MB suffice for these, boto3 included.
SCALABLE_BYTES: Final = 50_000_000
_SCALABLE_MEMORY_BYTES: Final = 300_000_000
_LONGEST_SIDE_PX: Final = 2048
_SMALLEST_SIDE_PX: Final = 256
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Photo:
    """Encoded bytes and the Content-Type under which the endpoint gets them."""

    data: bytes
    content_type: str = ANY_PHOTO

    @classmethod
    def of(cls, data: bytes) -> Photo:
        """Raises Refusal (400) for no bytes at all; whether they are a photo is for the endpoint to say."""
        if not data:
            raise bad_request("the photo is empty (0 bytes)")
        return cls(data, sniff(data) or ANY_PHOTO)


def sniff(data: bytes) -> str | None:
    """The Content-Type that the first bytes tell, or None where they tell no kind of photo."""
    for magic, content_type in _MAGIC.items():
        if data.startswith(magic):
            return content_type
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


@cache
def can_scale() -> bool:
    """Whether Pillow is packaged (`python -m deploy.lambda_zip --pillow`); it is imported only when it is needed."""
    return find_spec("PIL") is not None


def acceptable_bytes(max_image_bytes: int) -> int:
    """How large a photo may be when it arrives: the endpoint's limit, or more where it can be scaled down."""
    return max(max_image_bytes, SCALABLE_BYTES) if can_scale() else max_image_bytes


def fitted(photo: Photo, max_image_bytes: int) -> Photo:
    """The photo itself where it fits, else a smaller copy, upright; Refusal (413) where Pillow is not packaged."""
    if len(photo.data) <= max_image_bytes:
        return photo
    if not can_scale():
        raise too_large(f"the photo has {len(photo.data):,} bytes; the endpoint takes at most {max_image_bytes:,}")
    picture = _decoded(photo.data)
    side = max(picture.size)
    while side >= _SMALLEST_SIDE_PX:
        picture.thumbnail((side, side))
        smaller = _encoded(picture)
        if len(smaller.data) <= max_image_bytes:
            return smaller
        side = round(side / 1.4)
    raise too_large(f"the photo does not fit into the endpoint's {max_image_bytes:,} bytes, even scaled down")


def _decoded(data: bytes) -> Picture:
    """Upright, opaque, no side above `_LONGEST_SIDE_PX`.

    Raises Refusal: 422 for more pixels than fit in memory, 400 for bytes that are no readable photo.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of odd metadata, and of sizes that are checked here.
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = picture.size
            picture.draft(None, (_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
            if _memory_bytes(picture, width * height) > _SCALABLE_MEMORY_BYTES:
                raise _too_many_pixels(f"{width} x {height} pixels")
            smaller = _resizable(picture)
            smaller.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX), reducing_gap=None)
            # Only now, when it is small: each of these makes a copy.
            return _opaque(_upright(smaller))
    except Refusal:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("far too many pixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        message = f"the {len(data):,} bytes are too many to be sent as they are, and no photo that can be scaled down"
        raise Refusal(400, "unreadable_photo", message) from error


def _too_many_pixels(found: str) -> Refusal:
    message = f"the photo has {found}, which this function's memory does not hold to scale it down; send a smaller one"
    return Refusal(422, "photo_too_large", message)


def _memory_bytes(picture: Picture, pixels: int) -> int:
    """What decoding takes at its peak: the copies that `_resizable` and resizing make of the (drafted) pixels."""
    plain = picture.mode in ("L", "RGB") and not picture.has_transparency_data
    copies = 5 if plain else {"RGBA": 9, "LA": 9}.get(picture.mode, 12)
    # A progressive JPEG is held whole, as two bytes a coefficient, at whatever scale it is decoded.
    coefficients = 6 * pixels if picture.info.get("progressive") else 0
    return copies * picture.width * picture.height + coefficients


def _resizable(picture: Picture) -> Picture:
    """In a mode whose pixels can be averaged; 16-bit greys are scaled to 8 bits, as the endpoint's decoder does."""
    if picture.mode.startswith("I;16"):
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {picture.mode})")
    if picture.has_transparency_data:
        return picture if picture.mode in ("RGBA", "LA") else picture.convert("RGBA")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _upright(picture: Picture) -> Picture:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return picture  # A photo with broken metadata is still a photo: the endpoint takes it as it lies, too.


def _opaque(picture: Picture) -> Picture:
    """On white, as the endpoint shows what is transparent."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _encoded(picture: Picture) -> Photo:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, exif=b"")  # Upright already: a kept tag would turn it twice.
    return Photo(buffer.getvalue(), "image/jpeg")
