"""The host's libzstd by its C interface: compresses and decompresses into memory that is ours.

The `zstandard` package returns a new object for each frame: with 4 MiB frames 100,000 page faults for a gigabyte, 3 % of the
compressor's CPU time. Its libzstd 1.5.7 also looks for better borders of blocks: 5 % of the time for 0.3 % of the size. (Measured with
libzstd 1.5.4 beside it, on a 2-core EPYC.) Every host with QEMU has this library; where it is missing the package does the work.
"""

import ctypes
import weakref
from collections.abc import Mapping
from functools import cache

from engine.storage.base import Buffer

# Source: zstd.h, the stable part of it, since 1.4.0.
LEVEL, HASH_LOG, CHAIN_LOG, CHECKSUM = 100, 102, 103, 201
_LIBRARY = "libzstd.so.1"


class Libzstd:
    """The library's functions, each with the interpreter lock free while it runs."""

    def __init__(self) -> None:
        """Load it. Raises OSError if it is not there, AttributeError if it is too old."""
        library = ctypes.CDLL(_LIBRARY)
        self.create = _function(library.ZSTD_createCCtx, ctypes.c_void_p)
        self.free = _function(library.ZSTD_freeCCtx, ctypes.c_size_t, ctypes.c_void_p)
        self.set = _function(
            library.ZSTD_CCtx_setParameter, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_int
        )
        self.is_error = _function(library.ZSTD_isError, ctypes.c_uint, ctypes.c_size_t)
        self.compress = _function(
            library.ZSTD_compress2,
            ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
        )  # fmt: skip
        self.create_reader = _function(library.ZSTD_createDCtx, ctypes.c_void_p)
        self.free_reader = _function(library.ZSTD_freeDCtx, ctypes.c_size_t, ctypes.c_void_p)
        self.frame_bytes = _function(
            library.ZSTD_findFrameCompressedSize, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t
        )
        self.decompress = _function(
            library.ZSTD_decompressDCtx,
            ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
        )  # fmt: skip


@cache
def load() -> Libzstd | None:
    """Return the library, None where there is none that can be used."""
    try:
        return Libzstd()
    except (OSError, AttributeError):
        return None


class Context:
    """A compression context, which is reused from frame to frame; one thread at a time."""

    def __init__(self, library: Libzstd, parameters: Mapping[int, int]) -> None:
        """Raises ValueError for a parameter that the library does not take, MemoryError."""
        self._library = library
        self._context = library.create()
        if not self._context:
            raise MemoryError("no memory for a compression context")
        weakref.finalize(self, library.free, self._context)
        for parameter, value in parameters.items():
            if library.is_error(library.set(self._context, parameter, value)):
                raise ValueError(f"libzstd does not take {value} for its parameter {parameter}")

    def compress(self, data: memoryview, target: memoryview) -> int:
        """Fill `target` with one Zstandard frame of `data`, and return its bytes; 0 if it does not fit.

        Both are writable and contiguous, they do not overlap, and neither is empty.
        """
        count: int = self._library.compress(self._context, _address(target), target.nbytes, _address(data), data.nbytes)
        return 0 if self._library.is_error(count) else count


class Reader:
    """A decompression context, which is reused from frame to frame; one thread at a time."""

    def __init__(self, library: Libzstd) -> None:
        """Raises MemoryError."""
        self._library = library
        self._context = library.create_reader()
        if not self._context:
            raise MemoryError("no memory for a decompression context")
        weakref.finalize(self, library.free_reader, self._context)

    def decompress(self, data: Buffer, target: memoryview) -> int:
        """Fill `target` with the content of the Zstandard frame that is all of `data`, and return its bytes; -1 if it is damaged or longer.

        In one call, which compares the content's checksum. `data` is bytes, or writable; `target` is writable.
        """
        source = data if isinstance(data, bytes) else _address(data)
        if self._library.frame_bytes(source, len(data)) != len(data):  # several frames would be taken for one
            return -1
        count: int = self._library.decompress(self._context, _address(target), target.nbytes, source, len(data))
        return -1 if self._library.is_error(count) else count


def _function(function: "ctypes._NamedFuncPointer", result: type, *arguments: type) -> "ctypes._NamedFuncPointer":
    function.restype = result
    function.argtypes = list(arguments)
    return function


def _address(view: Buffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
