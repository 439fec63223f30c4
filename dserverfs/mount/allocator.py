"""Keeping the C library from giving back memory that is needed again at once.

glibc maps a buffer of a block anew each time, and each of its pages is a fault: to read
1 GiB from the disk cache took 2.8 s of CPU that way, and takes 1.4 s. Only for a process
that is ours: the mount daemon.
"""

from __future__ import annotations

import ctypes

# From <malloc.h>. What is larger than a block is still mapped, and given back.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
MAX_KEPT_BYTES = 64 * 1024 * 1024
MAX_HEAP_BUFFER_BYTES = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have up to MAX_KEPT_BYTES kept for the next buffers; nothing where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, MAX_KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAX_HEAP_BUFFER_BYTES)
