"""Writes one segment: header, frames in order, index, footer. Ordered: one thread at a time, any thread.

    for placed in place(plans):                        one thread, in plan order
        Segment.begin(...) for each new segment        before its first frame goes to a worker
        sealer.compress, sealer.seal                   worker threads, in any order
        writer.append / append_zero / finish           in plan order again

What the writer holds is the index, as bytes, and it is gone with the writer: memory does not grow with the disk.
"""

import hashlib

from engine.extents import Extent
from engine.format.compress import Compressor, ZstdCompressor
from engine.format.crypto import SEAL_BYTES, nonce_of
from engine.format.frames import SealedFrame
from engine.format.index import IndexBuilder
from engine.format.layout import FOOTER_BYTES, HEADER_BYTES, Footer, Segment, SegmentRef
from engine.storage.base import Sink


class SegmentWriter:
    """Appends `segment` to `sink`. The caller closes the sink after `finish`, and drops it without if anything raises."""

    def __init__(self, sink: Sink, segment: Segment, compressor: Compressor | None = None) -> None:
        self._sink = sink
        self._segment = segment
        self._compressor = compressor
        self._index = IndexBuilder()
        self._offset = HEADER_BYTES
        self._last_seen = False
        sink.write(segment.header)

    @property
    def frames(self) -> int:
        """How many frames were appended; also the number of the next."""
        return self._index.frames

    @property
    def stored_bytes(self) -> int:
        """How many bytes were written so far, the index and footer to come not counted."""
        return self._offset

    def append(self, frame: SealedFrame) -> None:
        """Append a frame. Raises ValueError if it is not the next one; what the sink raises passes through."""
        placed = frame.placed
        if placed.segment != self._segment.identity.number or placed.number != self.frames or self._last_seen:
            raise ValueError(f"{placed} is not frame {self.frames} of {self._segment.identity.name}")
        self._index.add_frame(frame.method, placed.plan.extents, len(frame.stored), frame.digest)
        self._sink.write(frame.stored)
        self._offset += len(frame.stored)
        self._last_seen = placed.last

    def append_zero(self, extent: Extent) -> None:
        """Note that an extent reads as zeros; it costs nothing but an index entry."""
        self._index.add_zero(extent)

    def finish(self, *, last: bool) -> SegmentRef:
        """Write index and footer, and return what a manifest has to say of the segment. `last`: of the disk's segments.

        Raises ValueError if the last frame was not marked as such.
        """
        index, segment = self._index, self._segment
        if index.frames and not self._last_seen:
            raise ValueError(f"the last frame of {segment.identity.name} is still to come")
        packed = (self._compressor or ZstdCompressor()).compress(index.map)
        footer = self._footer(len(packed) + (SEAL_BYTES if segment.encrypted else 0), b"", last=last)
        if segment.index_key is not None:
            packed = segment.index_key.seal(nonce_of(0), packed, footer.context(segment.header))
        index_hash = hashlib.sha256(index.table)
        index_hash.update(packed)
        end = self._footer(len(packed), index_hash.digest(), last=last).pack(segment.header)
        for part in (index.table, packed, end):
            self._sink.write(part)
        stored_bytes = self._offset + len(index.table) + len(packed) + FOOTER_BYTES
        return SegmentRef(
            segment.identity.number, stored_bytes, index.plain_bytes, index.frames, index.digest.hex(), end[-32:].hex()
        )

    def _footer(self, map_bytes: int, index_hash: bytes, *, last: bool) -> Footer:
        index = self._index
        return Footer(
            self._segment.encrypted, last, index.frames, self._offset, map_bytes, len(index.map),
            index.entries, index.plain_bytes, index.digest, index_hash,
        )  # fmt: skip
