"""Memory of the C library: what a step has freed is there for the next one."""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3)'s names for what it sets, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Give no memory back to the kernel in this process, and take none from it twice. glibc's alone; else nothing.

    By default every large tensor is mapped when it is made and unmapped when it is freed, and the kernel clears its
    pages each time: a tenth of the time of a ResNet's step on CPUs. One heap for all threads, since what the forward
    pass makes, autograd's own thread frees.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, _NEVER)
    set_option(_ARENA_MAX, 1)
