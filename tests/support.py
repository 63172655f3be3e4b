"""What tests of every kind share: waiting without sleeping, free ports, and photos of odd kinds."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")


def free_port() -> int:
    """A TCP port below 32767 (multi-model-server accepts no other) that nothing listens on now.

    It may be used only seconds later: tests that run side by side draw from ports of their own.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % count
    for _ in range(200):
        port = 20_000 + int(np.random.default_rng().integers(12_000 // count)) * count + ours
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def wait_until(check: Callable[[], T | None], *, timeout_s: float, what: str) -> T:
    """Poll `check` until it returns something true; fail with `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def picture(width: int = 120, height: int = 90, seed: int = 0) -> Image.Image:
    """A smooth RGB picture whose orientation can be seen: no symmetry, no flat areas."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_photos() -> dict[str, bytes]:
    """A photo of each kind that breaks careless decoders, by name."""
    rgb = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray((np.asarray(rgb.convert("L"), np.uint16) << 8) | 0x7F)
    return {
        "plain.jpg": encoded(rgb, "JPEG", quality=90),
        "rotated.jpg": encoded(rgb, "JPEG", quality=90, exif=exif.tobytes()),
        "grey.jpg": encoded(rgb.convert("L"), "JPEG"),
        "palette.png": encoded(rgb.quantize(32)),
        "transparent.png": encoded(_with_alpha(rgb)),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey16.png": encoded(grey16),
        "tiny.png": encoded(picture(3, 2)),
        "large.jpg": encoded(picture(4000, 3000), "JPEG", quality=85),
        "animated.gif": encoded(rgb, "GIF", save_all=True, append_images=[picture(seed=1)]),
        "photo.webp": encoded(rgb, "WEBP", quality=90),
        "photo.bmp": encoded(rgb, "BMP"),
    }


def _with_alpha(rgb: Image.Image) -> Image.Image:
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    return rgba
