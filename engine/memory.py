"""How the C library hands out memory in an engine process: one pool, kept, and large blocks apart from it.

By default each thread gets a pool of its own, and what it frees is given back to the kernel and faulted in again. One pool
that is kept until the end took 58 instead of 69 MiB for four workers. Large blocks come from the kernel and go back at once:
frames have buffers that are kept (see buffers.py), so what else is large is rare, and in the pool it would leave holes. It is
not rare where frames are read: a restore keeps those blocks too.

Loading libvirt, cryptography and what they link touches some 18 MiB of libraries that nothing looks at again: symbol tables,
initializers, what lies beside them. Before data flows these pages are let go; what is needed after all comes back from the
page cache, page by page.
"""

import ctypes
import re
import sys
import threading
from pathlib import Path

_TRIM_THRESHOLD = -1  # mallopt's parameters, from malloc.h
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
KEPT_BYTES = 64 << 20
LARGE_BYTES = 1 << 20
CONNECTION_BLOCK_BYTES = 8 << 10
READ_BYTES = 8 << 20  # more than any frame

_DONT_NEED = 4  # madvise's advice, from bits/mman-linux.h
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (....) [0-9a-f]+ \S+ (\d+) (?:.*\n)+?Anonymous: +(\d+) kB$", re.MULTILINE
)
_lock = threading.Lock()
_modules = 0  # how many were loaded when pages were last given back


def keep_one_pool() -> None:
    """Set this for the process. Call it before the first thread starts. A C library without mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def keep_connections_small() -> None:
    """Set this for a process with thousands of TLS connections, before its first thread starts.

    gRPC takes three buffers of 8 KiB and two of 17 KiB for each, of which a quiet connection uses the beginning: blocks of their own
    take up only the pages that were written, where those of the pool were all written by somebody before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)
        mallopt(_MMAP_THRESHOLD, CONNECTION_BLOCK_BYTES)


def keep_read_blocks() -> None:
    """From now on also keep the memory of frames that were read: each read has a block of its own, used once.

    Blocks fresh from the kernel are cleared page by page: four threads that read 677 MiB in frames of 0.6 to 4 MiB from the page
    cache took 0.65 s of CPU time with them and 0.17 s without, and the same 17 MiB at most. Any thread may call it at any time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, READ_BYTES)


def give_back_libraries() -> None:
    """Let go of the pages of code and constants that were read while libraries were loaded, and of what imports left free.

    Any thread may call it at any time. Does nothing if no module was imported since the last time.
    """
    global _modules
    with _lock:
        if len(sys.modules) == _modules:
            return
        _modules = len(sys.modules)
        library = ctypes.CDLL(None)
        if hasattr(library, "madvise"):
            for begin, end in constant_areas(Path("/proc/self/smaps").read_text()):
                library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONT_NEED)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def constant_areas(smaps: str) -> list[tuple[int, int]]:
    """Return begin and end address of what is mapped of libraries, may only be read, and is what the file holds.

    `smaps` is the text of /proc/PID/smaps. Relocated tables are read-only in the end too, and would be lost: some page of them was
    changed. A library that another thread is loading right now is left alone: what will be relocated still looks like the
    rest of it, until the loader has mapped the writable part, which is the last. Sources: proc(5); elf/dl-map-segments.h of glibc.
    """
    areas: list[tuple[int, int]] = []
    library: list[tuple[int, int]] = []
    inode = ""
    for mapping in _MAPPING.finditer(smaps):
        begin, end, permissions, of, changed_kib = mapping.groups()
        if of != inode:
            library, inode = [], of
        if inode == "0":
            continue
        if permissions == "rw-p":
            areas += library
            library = []
        elif permissions in {"r--p", "r-xp"} and changed_kib == "0":
            library.append((int(begin, 16), int(end, 16)))
    return areas
