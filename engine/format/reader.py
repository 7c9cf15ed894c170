"""Reads one segment: checks header, footer and index when it is opened, then hands out frames.

    header ─┐                    ┌─ table ── rows():     offset, length, SHA-256 of each frame, without a key
    footer ─┴─► sizes, hashes ───┤
                                 └─ map ──── entries():  extents of each frame, zero extents; needs the key if encrypted

A SegmentReader may be shared by threads, each with a FrameOpener of its own. It holds the index as bytes, at most 8 MiB.
"""

import hashlib
import hmac
from collections.abc import Iterator

from engine.errors import KeyMissing, SegmentCorrupt, WrongKey
from engine.extents import Extent
from engine.format.compress import DecompressFailed, Decompressor
from engine.format.crypto import Aead, OpenFailed, ServerKey, nonce_of
from engine.format.frames import FrameOpener, check_digest
from engine.format.index import INDEX_BYTES_MAX, ROW_BYTES, FrameEntry, Map, Row, Table
from engine.format.layout import FOOTER_BYTES, HEADER_BYTES, Footer, Header, SegmentRef
from engine.storage.base import ObjectReader
from engine.units import KIB

_MAP_STORED_BYTES_MAX = INDEX_BYTES_MAX + 64 * KIB  # what Zstandard and a box may add to what does not compress


class SegmentReader:
    """A checked segment. The caller closes `source` when done."""

    def __init__(
        self,
        source: ObjectReader,
        name: str,
        expected: SegmentRef | None,
        key: ServerKey | None,
    ) -> None:
        """Read and check header, footer and index: three small reads.

        `name` is the object's name: its content must be of that backup, disk and number. `expected` is what the manifest
        says of it, None where there is none.
        Without a key an encrypted segment can be verified, not read. Raises SegmentCorrupt, and WrongKey before anything is opened.
        """
        self._source = source
        self.name = name
        if source.size_bytes < HEADER_BYTES + FOOTER_BYTES:
            raise SegmentCorrupt(name=name, detail=f"has {source.size_bytes} bytes, too few for a segment")
        self._header_bytes = source.read_at(0, HEADER_BYTES)
        self.header = Header.unpack(self._header_bytes, name)
        footer_bytes = source.read_at(source.size_bytes - FOOTER_BYTES, FOOTER_BYTES)
        self.footer = Footer.unpack(footer_bytes, self._header_bytes, name)
        self.ref = self._reference(footer_bytes)
        self._check_identity(expected)
        self._frames_key, index_key = self._keys(key)
        self._table, packed = self._read_index()
        self._map = self._open_map(packed, index_key) if index_key or not self.header.encrypted else None

    @property
    def size_bytes(self) -> int:
        """Size of the virtual disk when the segment was written."""
        return self.header.identity.size_bytes

    @property
    def last(self) -> bool:
        """Whether it is the disk's last segment in its backup."""
        return self.footer.last

    def rows(self) -> Iterator[Row]:
        """Yield every frame as far as it is known without a key."""
        return self._table.rows()

    def entries(self) -> Iterator[FrameEntry | Extent]:
        """Yield every frame and zero extent, one object at a time. Raises KeyMissing if the map is closed."""
        if self._map is None:
            raise KeyMissing(key_id=f"with check value {self.header.key_check.hex()}")
        return self._map.entries(self._table, self.header.encrypted, self.name)

    def read(self, entry: FrameEntry, opener: FrameOpener) -> memoryview:
        """Return a frame's plaintext, checked; valid until the opener's next call. Raises FrameCorrupt."""
        stored = opener.room(entry, self.name)
        self._source.read_into(entry.offset, stored)
        return opener.open(stored, entry, self._header_bytes, self._frames_key, self.name)

    def verify(self, row: Row | FrameEntry, opener: FrameOpener) -> None:
        """Read a frame and compare its SHA-256; needs no key. Raises FrameCorrupt."""
        stored = opener.room(row, self.name)
        self._source.read_into(row.offset, stored)
        check_digest(stored, row, self.name)

    def _reference(self, footer_bytes: bytes) -> SegmentRef:
        footer = self.footer
        return SegmentRef(
            self.header.identity.number, self._source.size_bytes, footer.plain_bytes, footer.frames,
            footer.digest.hex(), footer_bytes[-32:].hex(),
        )  # fmt: skip

    def _check_identity(self, expected: SegmentRef | None) -> None:
        footer = self.footer
        if self.header.identity.name != self.name:
            raise SegmentCorrupt(name=self.name, detail=f"is really {self.header.identity.name}")
        if expected not in {None, self.ref}:
            raise SegmentCorrupt(name=self.name, detail="is not the segment that the manifest names")
        index_bytes = ROW_BYTES * footer.frames + footer.map_bytes
        if footer.encrypted != self.header.encrypted:
            raise SegmentCorrupt(name=self.name, detail="header and footer disagree")
        if footer.table_offset + index_bytes + FOOTER_BYTES != self._source.size_bytes:
            raise SegmentCorrupt(name=self.name, detail="the size does not fit the footer: it was cut short or grew")
        if (
            ROW_BYTES * footer.frames + footer.map_plain_bytes > INDEX_BYTES_MAX
            or footer.map_bytes > _MAP_STORED_BYTES_MAX
        ):
            raise SegmentCorrupt(name=self.name, detail=f"an index of {index_bytes} bytes is beyond the limit")

    def _keys(self, key: ServerKey | None) -> tuple[Aead | None, Aead | None]:
        if not self.header.encrypted and key is not None:
            raise SegmentCorrupt(name=self.name, detail="is not encrypted, but a key was given for it")
        if key is None:
            return None, None
        if not hmac.compare_digest(key.check, self.header.key_check):
            raise WrongKey(key_id=key.key_id)
        salt = self.header.salt
        return Aead(key.derive(salt, "frames")), Aead(key.derive(salt, "index"))

    def _read_index(self) -> tuple[Table, bytes]:
        footer, table_bytes = self.footer, ROW_BYTES * self.footer.frames
        index = self._source.read_at(footer.table_offset, table_bytes + footer.map_bytes)
        if hashlib.sha256(index).digest() != footer.index_hash:
            raise SegmentCorrupt(name=self.name, detail="the index is damaged")
        table = Table(index[:table_bytes])
        table.check(footer.table_offset, footer.digest, self.header.encrypted, self.name)
        return table, index[table_bytes:]

    def _open_map(self, packed: bytes, key: Aead | None) -> Map:
        footer = self.footer
        try:
            if key is not None:
                packed = key.open(nonce_of(0), packed, footer.context(self._header_bytes))
            opened = Map(Decompressor().decompress(packed, footer.map_plain_bytes))
        except OpenFailed as error:
            raise SegmentCorrupt(name=self.name, detail="the index is not authentic") from error
        except DecompressFailed as error:
            raise SegmentCorrupt(name=self.name, detail=f"the index cannot be decompressed: {error}") from error
        opened.check(footer.frames, footer.entries, footer.plain_bytes, self.size_bytes, self.name)
        return opened
