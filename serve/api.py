"""Names of the HTTP API that the front and the workers share (standard library only)."""

from __future__ import annotations

from typing import Final

JSON: Final = "application/json"
JSON_LINES: Final = "application/jsonlines"
CSV: Final = "text/csv"
PNG: Final = "image/png"
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
CONTENT_TYPES: Final = (*PHOTO_TYPES, JSON, JSON_LINES)
# What can be answered, best first.
ANSWER_TYPES: Final = (JSON, JSON_LINES, CSV, PNG)
ATTRIBUTES_HEADER: Final = "X-Amzn-SageMaker-Custom-Attributes"
# From the front to a worker: when the request's body was there (milliseconds since 1970).
ARRIVED_HEADER: Final = "x-arrived-ms"
TARGET_HEADER: Final = "X-Amzn-SageMaker-Target-Model"
# In multi-model mode: SageMaker's names are hashes, others' words with single dots between them.
MODEL_NAME: Final = r"[A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*"
MAX_MODEL_NAME: Final = 255
# Photos of one request: one worker answers them one after the other, within one deadline.
MAX_INSTANCES: Final = 128
