"""Manifests: what a backup is, and every data file it needs.

    backup.json      ServerManifest   written last: the VM's definition, and one DiskSummary per disk
    manifest.json    DiskManifest     layers, oldest first; the last one is the backup's own

        full A         incremental B        incremental C
        layers: A      layers: A, B         layers: A, B, C        what C says replaces what B said

What identifies a backup is in clear; the domain's XML with its secrets, NVRAM and paths are the sealed part. Without a key
the clear part is checked against its SHA-256; with the key against its HMAC too, and the sealed part is opened.
Source: FORMAT.md, "JSON objects".
"""

import base64
import binascii
import dataclasses
import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from engine import ids
from engine.errors import InvalidSpec, WrongKey
from engine.format import documents, names
from engine.format.crypto import CHECK_BYTES, INFO, SALT_BYTES, Aead, OpenFailed, Random, ServerKey, nonce_of
from engine.format.documents import Document, check_ids, corrupt, expect, is_hex, is_time
from engine.format.layout import SegmentRef

LAYERS_MAX = 4096
DISKS_MAX = 256
WARNINGS_MAX = 1000
HASH_BYTES = 32
BackupType: TypeAlias = Literal["full", "incremental", "differential", "copy"]

# Why an incremental became a full (T26): plan.py has the words; a reader accepts any of this form, also later ones.
_REASON = re.compile(r"[a-z_]{0,64}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layer:
    """The segments that one backup holds of the disk, in order; they lie in that backup's folder."""

    backup_id: str
    segments: tuple[SegmentRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskManifest:
    """One disk of one backup. Field by field: FORMAT.md, "manifest.json".

    `sealed` holds texts about the source (path, format, …); None if it was read without the key.
    """

    repository_id: str
    installation_id: str
    server_id: str
    backup_id: str
    disk: str
    type: BackupType
    chain_id: str
    parent_backup_id: str
    create_time: str
    size_bytes: int
    checkpoint: str
    reason: str
    compression_level: int
    key_id: str
    key_check: str
    plain_bytes: int
    stored_bytes: int
    sha256: str
    layers: tuple[Layer, ...]
    sealed: dict[str, str] | None = field(repr=False)

    @property
    def name(self) -> str:
        return names.manifest_name(self.server_id, self.backup_id, self.disk)

    @property
    def segments(self) -> tuple[SegmentRef, ...]:
        """The backup's own segments."""
        return self.layers[-1].segments


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSummary:
    """What backup.json repeats of a disk's manifest; `manifest_sha256` is over that object's bytes."""

    disk: str
    type: BackupType
    chain_id: str
    parent_backup_id: str
    size_bytes: int
    plain_bytes: int
    stored_bytes: int
    sha256: str
    checkpoint: str
    reason: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class SkippedDisk:
    """A disk that is not in the backup, and why; `disk` is the hypervisor's name for it."""

    disk: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Definition:
    """Enough to define the VM anew (T25). `nvram` is base64, "" for none; `disk_map` has texts about each disk."""

    domain_xml: str
    nvram: str
    disk_map: dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerManifest:
    """One backup of a server. Field by field: FORMAT.md, "backup.json". `sealed` is None if it was read without the key."""

    repository_id: str
    installation_id: str
    server_id: str
    backup_id: str
    job_id: str
    host: str
    domain_uuid: str
    domain_name: str
    create_time: str
    consistency_asked: str
    consistency_reached: str
    disks: tuple[DiskSummary, ...]
    skipped: tuple[SkippedDisk, ...]
    warnings: tuple[str, ...]
    key_id: str
    key_check: str
    wrapped_key: str
    sealed: Definition | None = field(repr=False)

    @property
    def name(self) -> str:
        return names.backup_name(self.server_id, self.backup_id)


def summarize(manifest: DiskManifest, data: bytes) -> DiskSummary:
    """Return what backup.json says of a disk; `data` is the manifest as it lies on the storage."""
    shared = {
        one.name: getattr(manifest, one.name)
        for one in dataclasses.fields(DiskSummary)
        if one.name != "manifest_sha256"
    }
    return DiskSummary(**shared, manifest_sha256=hashlib.sha256(data).hexdigest())


def layer_digest(segments: tuple[SegmentRef, ...]) -> str:
    """Return a disk's `sha256`: over its own segments' digests in order, hex. A tree, like the segments' own digests."""
    return hashlib.sha256(b"".join(bytes.fromhex(segment.digest) for segment in segments)).hexdigest()


def dump(manifest: DiskManifest | ServerManifest, key: ServerKey | None, random: Random = os.urandom) -> bytes:
    """Return a manifest's bytes, sealed and authenticated with `key` (None if `key_id` is "").

    What is returned has been read back: a manifest that a reader would refuse raises ManifestCorrupt here. Raises
    InvalidSpec if the sealed part is missing or the key is not the manifest's.
    """
    if manifest.sealed is None:
        raise InvalidSpec(field="sealed", problem="is missing; the manifest was read without its key")
    if (manifest.key_id, manifest.key_check) != ((key.key_id, key.check.hex()) if key else ("", "")):
        raise InvalidSpec(field="key_id", problem="is not that of the given key")
    kind = "disk" if isinstance(manifest, DiskManifest) else "backup"
    values = {"kind": kind, "version": documents.VERSION, **dataclasses.asdict(manifest)}
    mac = None
    if key is None:
        body = documents.to_json({**values, "sealed": {"clear": values["sealed"]}})
    else:
        salt = random(SALT_BYTES)
        plain = documents.to_json(values["sealed"])
        box = Aead(key.derive(salt, "manifest")).seal(nonce_of(0), plain, _context(kind, manifest))
        body = documents.to_json({**values, "sealed": {"salt": salt.hex(), "box": base64.b64encode(box).decode()}})
        mac = key.mac(salt, body)
    data = documents.wrap(body, mac)
    again = (load_disk if kind == "disk" else load_server)(data, manifest.name, key)
    if again != manifest:
        corrupt(manifest.name, "would not be read back as it is")
    return data


def load_disk(data: bytes, name: str, key: ServerKey | None = None) -> DiskManifest:
    """Return the disk manifest that lies under `name`; without a key, its clear part only.

    Raises ManifestCorrupt, ManifestUnsupported (written by a later version), WrongKey.
    """
    document = documents.unwrap(data, "disk", name)
    manifest = documents.decode(DiskManifest, {**document.values, "sealed": None}, name)
    _check_common(manifest, name)
    _check_disk(manifest, name)
    return dataclasses.replace(manifest, sealed=_open(document, manifest, "disk", key, name, dict[str, str]))


def load_server(data: bytes, name: str, key: ServerKey | None = None) -> ServerManifest:
    """Return the server manifest that lies under `name`; without a key, its clear part only. Raises like `load_disk`."""
    document = documents.unwrap(data, "backup", name)
    manifest = documents.decode(ServerManifest, {**document.values, "sealed": None}, name)
    _check_common(manifest, name)
    _check_server(manifest, name)
    sealed = _open(document, manifest, "backup", key, name, Definition)
    expect(sealed is None or _is_base64(sealed.nvram), name, "nvram is not base64")
    return dataclasses.replace(manifest, sealed=sealed)


def _open(
    document: Document,
    manifest: DiskManifest | ServerManifest,
    kind: str,
    key: ServerKey | None,
    name: str,
    cls: type[T],
) -> T | None:
    form = document.values.get("sealed")
    if not isinstance(form, dict):
        corrupt(name, "has no sealed part")
    if not manifest.key_id:
        # A forger without the key can still write a plain manifest: who brings a key insists on a sealed one.
        expect(key is None, name, "is not encrypted, but a key was given for it")
        expect(form.keys() == {"clear"} and document.hmac is None, name, "is not plain as its key_id says")
        return documents.decode(cls, form["clear"], name, "sealed")
    salt, box = _parts(form, name)
    if document.hmac is None:
        corrupt(name, "has no HMAC")
    if key is None:
        return None
    if key.key_id != manifest.key_id or not hmac.compare_digest(key.check.hex(), manifest.key_check):
        raise WrongKey(key_id=manifest.key_id)
    expect(hmac.compare_digest(key.mac(salt, document.body), document.hmac), name, "is not authentic")
    try:
        plain = Aead(key.derive(salt, "manifest")).open(nonce_of(0), box, _context(kind, manifest))
    except OpenFailed:
        corrupt(name, "the sealed part is not authentic")
    return documents.decode(cls, documents.from_json(plain, name), name, "sealed")


def _parts(form: dict[str, Any], name: str) -> tuple[bytes, bytes]:
    fits = form.keys() == {"salt", "box"} and all(type(text) is str for text in form.values())
    expect(fits and is_hex(form["salt"], SALT_BYTES) and _is_base64(form["box"]), name, "the sealed part is malformed")
    return bytes.fromhex(form["salt"]), base64.b64decode(form["box"])


def _context(kind: str, manifest: DiskManifest | ServerManifest) -> bytes:
    disk = manifest.disk if isinstance(manifest, DiskManifest) else ""
    return f"{INFO}/{kind}/{manifest.server_id}/{manifest.backup_id}/{disk}".encode()


def _check_common(manifest: DiskManifest | ServerManifest, name: str) -> None:
    check_ids(
        name, repository_id=manifest.repository_id, installation_id=manifest.installation_id,
        server_id=manifest.server_id, backup_id=manifest.backup_id,
    )  # fmt: skip
    expect(not isinstance(manifest, DiskManifest) or names.is_disk(manifest.disk), name, "disk is not a disk's name")
    expect(manifest.name == name, name, f"is really {manifest.name}")
    expect(is_time(manifest.create_time), name, "create_time is not a time")
    expect(manifest.key_id == "" or ids.is_id(manifest.key_id), name, "key_id is not an id")
    encrypted = manifest.key_id != ""
    expect(is_hex(manifest.key_check, CHECK_BYTES if encrypted else 0), name, "key_check is not a key's")


def _check_disk(manifest: DiskManifest, name: str) -> None:
    _check_type(manifest, name)
    expect(manifest.compression_level <= 19, name, "compression_level is out of range")
    layers = manifest.layers
    expect(1 <= len(layers) <= LAYERS_MAX, name, f"has {len(layers)} layers")
    based = manifest.type in {"incremental", "differential"}
    expect(len(layers) > 1 or not based, name, f"is {manifest.type} and names no other backup")
    expect(layers[-1].backup_id == manifest.backup_id, name, "the last layer is not its own")
    expect(len({layer.backup_id for layer in layers}) == len(layers), name, "a layer stands twice")
    for layer in layers:
        _check_layer(layer, name)
    own = manifest.segments
    sums = (sum(one.plain_bytes for one in own), sum(one.stored_bytes for one in own), layer_digest(own))
    expect(
        sums == (manifest.plain_bytes, manifest.stored_bytes, manifest.sha256), name, "its sums do not fit its segments"
    )


def _check_layer(layer: Layer, name: str) -> None:
    check_ids(name, layer=layer.backup_id)
    expect(1 <= len(layer.segments) <= names.SEGMENTS_MAX, name, f"a layer of {len(layer.segments)} segments")
    for number, segment in enumerate(layer.segments):
        hashes = is_hex(segment.digest, HASH_BYTES) and is_hex(segment.check, HASH_BYTES)
        if segment.number != number or not hashes:
            corrupt(name, f"segment {number} of layer {layer.backup_id} is malformed")


def _check_server(manifest: ServerManifest, name: str) -> None:
    expect(len(manifest.disks) <= DISKS_MAX and len(manifest.skipped) <= DISKS_MAX, name, "has too many disks")
    expect(len(manifest.warnings) <= WARNINGS_MAX, name, "has too many warnings")
    expect(len({one.disk for one in manifest.disks}) == len(manifest.disks), name, "a disk stands twice")
    for disk in manifest.disks:
        expect(names.is_disk(disk.disk), name, "disk is not a disk's name")
        expect(
            is_hex(disk.sha256, HASH_BYTES) and is_hex(disk.manifest_sha256, HASH_BYTES), name, "a hash is malformed"
        )
        _check_type(disk, name)


def _check_type(disk: DiskManifest | DiskSummary, name: str) -> None:
    check_ids(name, chain_id=disk.chain_id)
    based = disk.type in {"incremental", "differential"}
    expect(ids.is_id(disk.parent_backup_id) if based else disk.parent_backup_id == "", name, "type and parent disagree")
    expect(_REASON.fullmatch(disk.reason) is not None, name, "reason is malformed")


def _is_base64(text: str) -> bool:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except (binascii.Error, ValueError):
        return False
