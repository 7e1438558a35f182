"""How this process holds the memory that its tensors come from."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # mallopt's parameters, by glibc's malloc.h
PAD = 64 << 20  # bytes that are asked of the system at a time


def give_back_freed_memory() -> bool:
    """Give the system what this process holds and no longer needs; whether there was any and it could be given."""
    gc.collect()
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "malloc_trim") and bool(library.malloc_trim(0))


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process, and tell whether that could be done: on Linux, with glibc.

    glibc otherwise gives each large block back to the system when it is freed, and the kernel fills
    the next one with zeros, page by page. A step frees and asks for the same sizes over and over, so
    that costs a fifth of its time. No number depends on it (docs/decisions/0017).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, PAD))  # no block apart; never given back
    return all([library.mallopt(*setting) == 1 for setting in settings])
