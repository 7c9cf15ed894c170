"""A second reader of the storage format, written from engine/FORMAT.md alone: it imports nothing of this project.

    python tests/independent_reader.py FOLDER SERVER_ID BACKUP_ID DISK TARGET [PASSPHRASE]

restores a disk from a local copy of a storage. It exists to prove that the page is enough to get one's data back, with
libraries anybody has (cryptography, zstandard). It is plain rather than fast, and reads whole segments into memory.
"""

import base64
import hashlib
import hmac
import json
import struct
import sys
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MIB = 1 << 20


class Damaged(Exception):
    """Something on the storage is not as the page says."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Damaged(what)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


# ---- section 3: keys -------------------------------------------------------------------------------------------------


def derive(secret: bytes, salt: bytes | None, info: str, length: int = 32) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, f"backup-manager/1/{info}".encode()).derive(secret)


def open_box(key: bytes, number: int | None, box: bytes, context: bytes) -> bytes:
    nonce = box[:12]
    demand(number is None or nonce == struct.pack("<Q4x", number), "a nonce is not the number it must be")
    return ChaCha20Poly1305(key).decrypt(nonce, box[12:], context)


def storage_key(folder: Path, key_id: str, passphrase: str) -> bytes:
    """Open the newest revision of a key object with a passphrase."""
    revisions = [(int(path.name.split(".")[1]), path) for path in folder.glob(f"keys/{key_id}.*.json")]
    path = max(revisions)[1] if revisions else folder / "keys" / f"{key_id}.json"
    body, _, _ = read_document(path, "key")
    demand(body["key_id"] == key_id, "the key object is another key's")
    for slot in body["slots"]:
        n, r, p = slot["n"], slot["r"], slot["p"]
        demand(slot["kdf"] == "scrypt" and n <= 1 << 20 and r <= 32 and p <= 16, "a slot is beyond the limits")
        secret = unicodedata.normalize("NFC", passphrase).encode()
        wrapping = Scrypt(bytes.fromhex(slot["salt"]), 32, n, r, p).derive(secret)
        context = f"backup-manager/1/key/{key_id}/scrypt/{n}/{r}/{p}".encode()
        try:
            return open_box(wrapping, None, bytes.fromhex(slot["box"]), context)
        except Exception:
            continue
    raise Damaged("no slot opens with this passphrase")


# ---- section 6: JSON objects -----------------------------------------------------------------------------------------


def read_document(path: Path, kind: str) -> tuple[dict[str, Any], bytes, str | None]:
    """Return body, its exact bytes, and the HMAC in hex."""
    data = path.read_bytes()
    lines = data.split(b"\n")
    demand(len(lines) == 3 and lines[2] == b"", f"{path} is not two lines")
    trailer = json.loads(lines[1])
    demand(trailer["sha256"] == sha256(data[: data.rindex(b'"sha256":"') + 10]).hex(), f"{path}: SHA-256")
    body = json.loads(lines[0])
    demand(body["version"] == 1 and body["kind"] == kind, f"{path} is no {kind}")
    return body, lines[0], trailer["hmac"]


def read_manifest(path: Path, kind: str, key: bytes | None) -> dict[str, Any]:
    """Return a manifest with its sealed part opened, in place, under `sealed`."""
    body, exact, mac = read_document(path, kind)
    sealed = body["sealed"]
    if not body["key_id"]:
        demand(mac is None and key is None, f"{path} is not encrypted")
        body["sealed"] = sealed["clear"]
        return body
    demand(key is not None, f"{path} is encrypted; a passphrase is needed")
    assert key is not None
    demand(derive(key, None, "check", 8).hex() == body["key_check"], "the key is wrong")
    salt = bytes.fromhex(sealed["salt"])
    demand(mac == hmac.digest(derive(key, salt, "mac"), exact, "sha256").hex(), f"{path}: HMAC")
    context = f"backup-manager/1/{kind}/{body['server_id']}/{body['backup_id']}/{body.get('disk', '')}".encode()
    body["sealed"] = json.loads(open_box(derive(key, salt, "manifest"), 0, base64.b64decode(sealed["box"]), context))
    return body


# ---- section 4: segments ---------------------------------------------------------------------------------------------

HEADER = struct.Struct("<8sHHI16s16s32sQ32s8s32s")
FOOTER = struct.Struct("<8sHHIQIIIIQ32s32s32s")


class Segment:
    """A whole segment in memory, checked as section 5 says."""

    def __init__(self, data: bytes, place: tuple[str, str, str, int], key: bytes | None) -> None:
        demand(len(data) >= 160 + 144, "too short for a segment")
        self.header, footer = data[:160], data[-144:]
        magic, version, flags, number, server, backup, disk, self.size, salt, check, own_hash = HEADER.unpack(
            self.header
        )
        demand(magic == b"\x89BMSEG\r\n" and version == 1 and flags in {0, 1}, "no segment of version 1")
        demand(own_hash == sha256(self.header[:128]), "header hash")
        found = (str(uuid.UUID(bytes=server)), str(uuid.UUID(bytes=backup)), disk.rstrip(b"\0").decode(), number)
        demand(found == place, f"this segment belongs to {found}")
        (magic, version, end_flags, self.frames, table_at, map_bytes, map_plain, self.entries, zero, self.plain_bytes,
         self.digest, index_hash, self.check) = FOOTER.unpack(footer)  # fmt: skip
        demand(magic == b"\x89BMEND\r\n" and version == 1 and zero == 0 and end_flags & 1 == flags, "footer")
        demand(self.check == sha256(self.header, footer[:112]), "footer check")
        map_at = table_at + 36 * self.frames
        demand(map_at + map_bytes + 144 == len(data), "size")
        demand(36 * self.frames + map_plain <= 8 * MIB, "index limit")
        demand(index_hash == sha256(data[table_at : map_at + map_bytes]), "index hash")
        self.last_of_disk = bool(end_flags & 2)
        self.data = data
        self.frames_key: bytes | None = None
        packed_map = data[map_at : map_at + map_bytes]
        if flags & 1:
            demand(key is not None and check == derive(key, None, "check", 8), "the key is wrong or missing")
            assert key is not None
            self.frames_key = derive(key, salt, "frames")
            packed_map = open_box(derive(key, salt, "index"), 0, packed_map, self.header + footer[:80])
        else:
            demand(key is None, "not encrypted")
        self.table = list(struct.iter_unpack("<I32s", data[table_at:map_at]))
        demand(160 + sum(length for length, _ in self.table) == table_at, "stored lengths")
        demand(sha256(*(digest for _, digest in self.table)) == self.digest, "digest")
        self.map = unpack(packed_map, map_plain)

    def write_to(self, image: bytearray) -> None:
        """Apply every entry of the map to an image."""
        at, offset, frame, entries, plain_bytes = 0, 160, 0, 0, 0
        while at < len(self.map):
            kind, entries = self.map[at], entries + 1
            if kind == 0:
                start, length = struct.unpack_from("<QQ", self.map, at + 1)
                demand(start + length <= self.size, "a zero extent beyond the disk")
                image[start : start + length] = bytes(length)
                at += 17
                continue
            demand(kind in {1, 2}, "an unknown entry")
            (count,) = struct.unpack_from("<H", self.map, at + 1)
            listed = self.map[at + 1 : at + 3 + 12 * count]
            stored_length, digest = self.table[frame]
            stored = self.data[offset : offset + stored_length]
            demand(sha256(stored) == digest, f"SHA-256 of frame {frame}")
            extents = list(struct.iter_unpack("<QI", listed[2:]))
            plain = self.open_frame(stored, frame, kind, listed, sum(length for _, length in extents))
            plain_bytes += len(plain)
            done = 0
            for start, length in extents:
                demand(start + length <= self.size, "an extent beyond the disk")
                image[start : start + length] = plain[done : done + length]
                done += length
            at, offset, frame = at + 3 + 12 * count, offset + stored_length, frame + 1
        demand((frame, entries, plain_bytes) == (self.frames, self.entries, self.plain_bytes), "sums of the map")

    def open_frame(self, stored: bytes, number: int, method: int, listed: bytes, length: int) -> bytes:
        if self.frames_key is not None:
            last = number == self.frames - 1
            context = self.header + struct.pack("<IBBI", number, method, last, length) + listed
            stored = open_box(self.frames_key, number, stored, context)
        plain = unpack(stored, length) if method == 2 else stored
        demand(len(plain) == length, f"length of frame {number}")
        return plain


def unpack(data: bytes, length: int) -> bytes:
    demand(zstandard.get_frame_parameters(data).content_size == length, "declared content size")
    return zstandard.ZstdDecompressor(max_window_size=8 * MIB).decompress(data, allow_extra_data=False)


# ---- a whole restore -------------------------------------------------------------------------------------------------


def restore(folder: Path, server_id: str, backup_id: str, disk: str, passphrase: str = "") -> bytes:
    """Return a disk's content."""
    place = folder / "servers" / server_id / backup_id
    key_id = read_document(place / "backup.json", "backup")[0]["key_id"]
    key = derive(storage_key(folder, key_id, passphrase), None, f"server/{server_id}") if key_id else None
    backup = read_manifest(place / "backup.json", "backup", key)
    manifest = read_manifest(place / disk / "manifest.json", "disk", key)
    listed = {one["disk"]: one["manifest_sha256"] for one in backup["disks"]}
    demand(
        sha256((place / disk / "manifest.json").read_bytes()).hex() == listed[disk],
        "backup.json names another manifest",
    )
    image = bytearray(manifest["size_bytes"])
    for layer in manifest["layers"]:
        for ref in layer["segments"]:
            path = folder / "servers" / server_id / layer["backup_id"] / disk / f"{ref['number']:04d}.data"
            data = path.read_bytes()
            segment = Segment(data, (server_id, layer["backup_id"], disk, ref["number"]), key)
            found = (len(data), segment.plain_bytes, segment.frames, segment.digest.hex(), segment.check.hex())
            wanted = (ref["stored_bytes"], ref["plain_bytes"], ref["frames"], ref["digest"], ref["check"])
            demand(found == wanted, f"{path} is not the segment that the manifest names")
            demand(segment.last_of_disk == (ref is layer["segments"][-1]), "segments are missing")
            segment.write_to(image)
    return bytes(image)


if __name__ == "__main__":
    source, server, backup, disk_name, target, *secret = sys.argv[1:]
    Path(target).write_bytes(restore(Path(source), server, backup, disk_name, *secret))
