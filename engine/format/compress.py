"""Zstandard within the format's rules: one frame with content size and checksum, no dictionary, nothing after it.

One Compressor per thread: it reuses its context, which saves the page faults of a new one per frame.
"""

from functools import cached_property
from typing import Protocol

import zstandard

from engine.errors import InvalidSpec
from engine.extents import FRAME_BYTES_MAX
from engine.format import libzstd
from engine.storage.base import Buffer
from engine.units import KIB, MIB

LEVEL_DEFAULT = 3
LEVEL_MAX = 19
WINDOW_BYTES_MAX = 8 * MIB  # level 19 with 4 MiB frames needs 4 MiB; a reader refuses more


class Compressor(Protocol):
    """What writers need. A test passes one of its own to have the same bytes under every version of libzstd."""

    def compress(self, data: Buffer) -> bytes:
        """Return `data` as one Zstandard frame."""


class ZstdCompressor:
    """A reused compression context; one thread at a time. The interpreter lock is free while it works."""

    def __init__(self, level: int = LEVEL_DEFAULT) -> None:
        if not 1 <= level <= LEVEL_MAX:
            raise InvalidSpec(field="compression_level", problem=f"{level} is not between 1 and {LEVEL_MAX}")
        # Level 3 with smaller tables stays in the second-level cache: 11-16 % faster, 0.9 % larger output
        # (measured on a 2-core EPYC with 4 MiB frames of a Debian image).
        tuned = {"hash_log": 16, "chain_log": 15} if level == LEVEL_DEFAULT else {}
        self._direct = _direct_context(level, tuned)
        self._level = level
        self._tuned = tuned

    @cached_property
    def _context(self) -> zstandard.ZstdCompressor:
        """The package's: made when it is needed, since it takes 1 ms and memory of its own."""
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self._level,
            source_size=FRAME_BYTES_MAX,
            write_checksum=True,
            write_content_size=True,
            write_dict_id=False,
            **self._tuned,
        )
        return zstandard.ZstdCompressor(compression_params=parameters)

    def compress(self, data: Buffer) -> bytes:
        if self._direct is not None and isinstance(data, bytearray) and data:
            target = bytearray(
                len(data) + len(data) // 128 + KIB
            )  # more than libzstd ever needs, so that it always fits
            if count := self._direct.compress(memoryview(data), memoryview(target)):
                return bytes(memoryview(target)[:count])
        return self._context.compress(data)

    def compress_into(self, data: memoryview, target: memoryview) -> int:
        """Fill `target` with `data` as one Zstandard frame and return how many bytes it has, 0 if it does not fit.

        They are parts of two different writable buffers. No memory is taken for the frame.
        """
        if self._direct is not None and data and target:
            return self._direct.compress(data, target)
        packed = self._context.compress(data)
        if len(packed) > len(target):
            return 0
        target[: len(packed)] = packed
        return len(packed)


def _direct_context(level: int, tuned: dict[str, int]) -> libzstd.Context | None:
    """Return a context of the host's library, None where it has none; every version has other defaults, but obeys these."""
    library = libzstd.load()
    if library is None:
        return None
    parameters = {libzstd.LEVEL: level, libzstd.CHECKSUM: 1}
    if tuned:
        parameters |= {libzstd.HASH_LOG: tuned["hash_log"], libzstd.CHAIN_LOG: tuned["chain_log"]}
    return libzstd.Context(library, parameters)


class DecompressFailed(Exception):
    """Not one Zstandard frame of the expected length. Callers turn this into a typed error; the text holds no data."""


class Decompressor:
    """A reused decompression context; one thread at a time."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor()
        library = libzstd.load()
        self._direct = libzstd.Reader(library) if library is not None else None

    def decompress_into(self, data: bytes | memoryview, target: memoryview) -> None:
        """Fill `target` with the content of `data`, as `decompress` returns it; a memoryview is writable. Raises DecompressFailed.

        No memory is taken for the content, where the host has libzstd.
        """
        if self._direct is None or not target:
            target[:] = self.decompress(data, len(target))
            return
        self._check(data, len(target))
        if self._direct.decompress(data, target) != len(target):
            raise DecompressFailed("the Zstandard frame is damaged")

    def decompress(self, data: Buffer, length: int) -> bytes:
        """Return the content of the Zstandard frame `data`, which is exactly `length` bytes. Raises DecompressFailed.

        The declared size is compared before memory is taken. The one-shot call is used on purpose: the streaming one
        hands out a frame whose checksum has been cut off (seen with zstandard 0.25), and is no faster.
        """
        self._check(data, length)
        try:
            plain = self._context.decompress(data, max_output_size=length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecompressFailed(str(error)) from error
        if len(plain) != length:
            raise DecompressFailed("the Zstandard frame is shorter than it says")
        return plain

    def _check(self, data: Buffer, length: int) -> None:
        """Raise DecompressFailed unless `data` begins a Zstandard frame of this length, as the format demands it."""
        try:
            declared = zstandard.get_frame_parameters(data)
        except zstandard.ZstdError as error:
            raise DecompressFailed(str(error)) from error
        fits = declared.content_size == length and declared.window_size <= WINDOW_BYTES_MAX
        if not fits or not declared.has_checksum or declared.dict_id:
            raise DecompressFailed("the Zstandard frame is not as the format demands")
