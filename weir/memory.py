"""How this process treats the memory that it frees."""

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# glibc takes no more than this for the second.
_MMAP_BYTES_MAX = 32 * 1024 * 1024


def keep_freed_memory(bytes_max: int = 256 * 1024 * 1024) -> bool:
    """Keep up to `bytes_max` of what is freed for the next batch; whether the C library can (glibc).

    By itself it gives each large buffer back at once, and the next one is paid for page by page.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, bytes_max) and mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES_MAX))
