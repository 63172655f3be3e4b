"""Names of the HTTP API that the front and the workers share (standard library only)."""

from __future__ import annotations

from typing import Final

JSON: Final = "application/json"
# What is sent is recognised by its first bytes, whatever of these it is called.
PHOTO_TYPES: Final = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/webp",
    "image/bmp",
    "image/gif",
    "image/tiff",
    "application/x-image",
    "application/octet-stream",
)
CONTENT_TYPES: Final = (*PHOTO_TYPES, JSON)
ATTRIBUTES_HEADER: Final = "X-Amzn-SageMaker-Custom-Attributes"
