"""Small backups in memory, written and read by the real code: what the format's tests and the vectors are made of.

A repository is a dict from object name to bytes. Frames are a few hundred bytes here, so that every byte can be flipped.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings

from engine.extents import Extent, FramePlan
from engine.format import manifest, names
from engine.format.compress import Compressor, ZstdCompressor
from engine.format.crypto import ServerKey, StorageKey
from engine.format.frames import FrameOpener, FrameSealer
from engine.format.layout import Identity, Segment, SegmentRef
from engine.format.manifest import Definition, DiskManifest, Layer, ServerManifest, SkippedDisk
from engine.format.placement import PlacedFrame, PlacedZero, place
from engine.format.reader import SegmentReader
from engine.format.writer import SegmentWriter
from engine.spec import BackupType
from engine.storage.base import Buffer, ObjectReader

SERVER = "00000000-0000-7000-8000-000000000001"
OTHER_SERVER = "00000000-0000-7000-8000-000000000002"
FULL = "00000000-0000-7000-8000-00000000000a"
INCREMENTAL = "00000000-0000-7000-8000-00000000000b"
KEY = "00000000-0000-7000-8000-00000000000f"
REPOSITORY = "00000000-0000-7000-8000-0000000000aa"
INSTALLATION = "00000000-0000-7000-8000-0000000000bb"
TIME = "2026-11-23T03:00:00Z"
STORAGE_KEY = StorageKey(KEY, bytes(range(32)))
SERVER_KEY = STORAGE_KEY.server_key(SERVER)

# Our machines are shared: how long an example takes says nothing.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Objects = dict[str, bytes]
Item = FramePlan | Extent


class Luck:
    """Random bytes that are the same each time; no two calls give the same."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, length: int) -> bytes:
        self._calls += 1
        return hashlib.shake_128(f"{self._seed}/{self._calls}".encode()).digest(length)


class MemorySink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer) -> None:
        self.data += data


class MemoryReader(ObjectReader):
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes, "a reader asks for nothing beyond the object"
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


@dataclass
class Writing:
    """How a sample is written."""

    key: ServerKey | None = None
    random: Callable[[int], bytes] = field(default_factory=lambda: Luck("sample"))
    compressor: Compressor = field(default_factory=ZstdCompressor)
    segment_plain_bytes: int = 1 << 30
    server_id: str = SERVER


def frame(*extents: tuple[int, int]) -> FramePlan:
    return FramePlan(tuple(Extent(start, length) for start, length in extents))


def zero(start: int, length: int) -> Extent:
    return Extent(start, length, zero=True)


def content(plan: FramePlan, image: bytes) -> memoryview:
    return memoryview(b"".join(image[extent.start : extent.end] for extent in plan.extents))


def write_layer(
    objects: Objects, how: Writing, backup_id: str, disk: str, image: bytes, items: Iterable[Item]
) -> tuple[SegmentRef, ...]:
    """Write a disk's segments into `objects`."""
    refs: list[SegmentRef] = []
    sealer = FrameSealer(compressor=how.compressor)
    segment, sink, writer = None, MemorySink(), None
    for placed in place(items, how.segment_plain_bytes):
        if segment is None or writer is None:
            segment = Segment.begin(
                Identity(how.server_id, backup_id, disk, len(refs), len(image)), how.key, how.random
            )
            sink = MemorySink()
            writer = SegmentWriter(sink, segment, how.compressor)
        if isinstance(placed, PlacedFrame):
            packed = sealer.compress(content(placed.plan, image))
            writer.append(sealer.seal(segment, placed, packed))
        elif isinstance(placed, PlacedZero):
            writer.append_zero(placed.extent)
        else:
            refs.append(writer.finish(last=placed.last))
            objects[segment.identity.name] = bytes(sink.data)
            segment = writer = None
    return tuple(refs)


def disk_manifest(
    how: Writing,
    backup_id: str,
    disk: str,
    size_bytes: int,
    layers: tuple[Layer, ...],
    parent: str = "",
    kind: BackupType | None = None,
) -> DiskManifest:
    kind = kind or ("incremental" if parent else "full")
    own = layers[-1].segments
    return DiskManifest(
        repository_id=REPOSITORY,
        installation_id=INSTALLATION,
        server_id=how.server_id,
        backup_id=backup_id,
        disk=disk,
        type=kind,
        chain_id=layers[0].backup_id,
        parent_backup_id=parent,
        create_time=TIME,
        size_bytes=size_bytes,
        checkpoint="",
        reason="first" if kind == "full" else "",
        compression_level=3,
        key_id=how.key.key_id if how.key else "",
        key_check=how.key.check.hex() if how.key else "",
        plain_bytes=sum(one.plain_bytes for one in own),
        stored_bytes=sum(one.stored_bytes for one in own),
        sha256=manifest.layer_digest(own),
        layers=layers,
        sealed={"path": f"/images/{disk}.qcow2", "format": "qcow2"},
    )


def server_manifest(
    how: Writing, backup_id: str, disks: dict[str, tuple[DiskManifest, bytes]], wrapped_key: str = ""
) -> ServerManifest:
    return ServerManifest(
        repository_id=REPOSITORY,
        installation_id=INSTALLATION,
        server_id=how.server_id,
        backup_id=backup_id,
        job_id="job-1",
        host="hypervisor-1",
        domain_uuid="7f5c5d6e-2c2b-4b3a-9d0f-3c1d6f0d9a11",
        domain_name="web-1",
        create_time=TIME,
        consistency_asked="freeze_or_pause",
        consistency_reached="freeze",
        disks=tuple(manifest.summarize(one, data) for one, data in disks.values()),
        skipped=(SkippedDisk("sr0", "DISK_UNSUPPORTED", "a CD-ROM"),),
        warnings=("the CD-ROM sr0 is not in this backup",),
        key_id=how.key.key_id if how.key else "",
        key_check=how.key.check.hex() if how.key else "",
        wrapped_key=wrapped_key,
        sealed=Definition(
            "<domain><name>web-1</name></domain>", "AAECAw==", {disk: {"format": "qcow2"} for disk in disks}
        ),
    )


def put_manifest(objects: Objects, how: Writing, value: DiskManifest | ServerManifest) -> bytes:
    objects[value.name] = manifest.dump(value, how.key, how.random)
    return objects[value.name]


def restore(objects: Objects, backup_id: str, disk: str, key: ServerKey | None) -> bytes:
    """Return a disk's content as our own code reads it, each thing checked against the one that names it."""
    server = manifest.load_server(
        objects[names.backup_name(SERVER, backup_id)], names.backup_name(SERVER, backup_id), key
    )
    name = names.manifest_name(SERVER, backup_id, disk)
    one = manifest.load_disk(objects[name], name, key)
    assert manifest.summarize(one, objects[name]) in server.disks
    image = bytearray(one.size_bytes)
    for layer in one.layers:
        for ref in layer.segments:
            apply(image, objects, names.segment_name(SERVER, layer.backup_id, disk, ref.number), ref, key)
    return bytes(image)


def apply(image: bytearray, objects: Objects, name: str, ref: SegmentRef | None, key: ServerKey | None) -> None:
    """Write a segment's extents into an image."""
    reader = SegmentReader(MemoryReader(objects[name]), name, ref, key)
    opener = FrameOpener()
    for entry in reader.entries():
        if isinstance(entry, Extent):
            image[entry.start : entry.end] = bytes(entry.length)
            continue
        plain, done = reader.read(entry, opener), 0
        for extent in entry.extents:
            image[extent.start : extent.end] = plain[done : done + extent.length]
            done += extent.length
        assert done == len(plain)


def text(length: int, seed: str) -> bytes:
    """Return bytes that compress well and differ by seed."""
    return (f"{seed} is a line of text that compresses. ".encode() * (length // 16 + 1))[:length]


def noise(length: int, seed: str) -> bytes:
    """Return bytes that do not compress."""
    return hashlib.shake_128(seed.encode()).digest(length)


def first_image() -> bytes:
    """8 KiB: text, noise, a hole, text."""
    return text(1024, "one") + noise(512, "two") + bytes(4096) + text(2560, "three")


def second_image() -> bytes:
    """The first image after a guest wrote three places and zeroed one."""
    image = bytearray(first_image())
    image[100:200] = noise(100, "four")
    image[1024:1280] = bytes(256)
    image[2048:2348] = text(300, "five")
    image[8000:8192] = text(192, "six")
    return bytes(image)


FULL_ITEMS: tuple[Item, ...] = (
    frame((0, 700)),
    frame((700, 324)),
    frame((1024, 476)),
    zero(1536, 4096),
    frame((1500, 36), (5632, 800)),
    frame((6432, 1760)),
)
DIRTY_ITEMS: tuple[Item, ...] = (zero(1024, 256), frame((100, 100), (2048, 300)), frame((8000, 192)))


def small_chain(how: Writing) -> Objects:
    """Return a full of two segments and an incremental of one disk, with all manifests."""
    objects: Objects = {}
    layers: tuple[Layer, ...] = ()
    for backup_id, image, items, parent in (
        (FULL, first_image(), FULL_ITEMS, ""),
        (INCREMENTAL, second_image(), DIRTY_ITEMS, FULL),
    ):
        layers = (*layers, Layer(backup_id, write_layer(objects, how, backup_id, "vda", image, items)))
        value = disk_manifest(how, backup_id, "vda", len(image), layers, parent)
        data = put_manifest(objects, how, value)
        put_manifest(objects, how, server_manifest(how, backup_id, {"vda": (value, data)}))
    return objects
