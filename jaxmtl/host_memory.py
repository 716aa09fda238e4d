"""Keeps memory that XLA's programs free on CPUs, so that the next step need not ask the system for it again."""

import ctypes
import sys

# What `mallopt` calls them, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep what is freed; call it before the first computation.

    On CPUs the buffers of a step are allocated and freed at every step. By default glibc maps each anew, and the system
    clears and faults in gigabytes, which takes a tenth of a step and more. Threads have to share one arena: others are
    too small for such buffers, which are then mapped after all.

    Returns:
      True if the allocator was told, False where it is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))])
