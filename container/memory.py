"""What the C library does with freed memory. Of glibc's making: with another library, nothing here does anything."""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3)'s names for what it sets, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8

_NEVER: Final = 2**31 - 1
# More than a common photo or the network's input takes: those find their place in the heap, without the kernel.
_LARGE_BYTES: Final = 1024 * 1024
# What such a photo takes from the end of the heap, and leaves free there.
_KEPT_BYTES: Final = 4 * 1024 * 1024


def keep_freed_memory() -> None:
    """For training: give no memory back to the kernel, and take none from it twice.

    By default every large tensor is mapped when it is made and unmapped when it is freed, and the kernel clears its
    pages each time. One heap for all threads, since what the forward pass makes, autograd's own thread frees.
    """
    _call("mallopt", _MMAP_MAX, 0)
    _call("mallopt", _TRIM_THRESHOLD, _NEVER)
    _call("mallopt", _ARENA_MAX, 1)


def keep_large_blocks_apart() -> None:
    """For serving: map blocks of a MiB and more by themselves, so that they are gone when they are freed.

    By default they move into the heap once the first is freed, and among small ones that live on, it grows for hours.
    What smaller blocks leave free at the heap's end is kept for the next photo.
    """
    _call("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)
    _call("mallopt", _TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Give back what is free in the heap now, such as what loading a network leaves."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
