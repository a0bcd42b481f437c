"""glibc's allocator, told to keep the memory that XLA frees: a setting of the process, without effect elsewhere."""

import ctypes

# Names and numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Call it before JAX starts its threads; returns whether the allocator took the settings.

    XLA on a CPU allocates the workspace of a step anew each time, hundreds of megabytes for a batch of 128. By default
    glibc hands such blocks back to the system at once, and the next step waits for some 60,000 page faults. Here freed
    blocks stay with the process, in one heap, so its size is that of its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    settings = {_M_MMAP_MAX: 0, _M_ARENA_MAX: 1, _M_TRIM_THRESHOLD: _MOST, _M_TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
