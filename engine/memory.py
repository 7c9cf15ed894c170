"""How the C library hands out memory in an engine process: one pool, kept, and large blocks apart from it.

By default each thread gets a pool of its own, and what it frees is given back to the kernel and faulted in again. One pool
that is kept until the end took 58 instead of 69 MiB for four workers. Large blocks come from the kernel and go back at once:
frames have buffers that are kept (see buffers.py), so what else is large is rare, and in the pool it would leave holes.
"""

import ctypes

_TRIM_THRESHOLD = -1  # mallopt's parameters, from malloc.h
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
KEPT_BYTES = 64 << 20
LARGE_BYTES = 1 << 20


def keep_one_pool() -> None:
    """Set this for the process. Call it before the first thread starts. A C library without mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
