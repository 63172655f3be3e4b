"""Memory of the C library (glibc; with another, nothing is done): what a worker has freed goes back to the kernel."""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3)'s name for it, from glibc's malloc.h.
_MMAP_THRESHOLD: Final = -3
# More than a common photo or the network's input takes: those find their place in the heap, without the kernel.
_LARGE_BYTES: Final = 1024 * 1024


def keep_large_blocks_apart() -> None:
    """Map blocks of a MiB and more by themselves, so that they are gone when they are freed.

    By default they move into the heap once the first is freed, and among small ones that live on, it grows for hours.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE_BYTES)


def return_freed_memory() -> None:
    """Give back what loading has freed: the C library keeps the read file and the unpacked weights, half of it all."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
