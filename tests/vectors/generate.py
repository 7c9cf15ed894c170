"""Makes the test vectors: `python -m tests.vectors.generate`. They never change; a new version of the format adds new ones.

    tiny/plain.data, sealed.data   one segment each, shown in FORMAT.md
    plain/, sealed/                two repositories as they lie on a storage: a full of several segments, an incremental
    expected.json                  what they restore to (SHA-256), and the secrets that open them
    compressed.json                what Zstandard made of each plaintext here, so that any libzstd gives the same vectors
    chain-…/, chains…json          the same for every type of backup, see chains.py

All luck is injected: salts and nonces come from `Luck`. The passphrases and keys here are public and protect nothing.
"""

import hashlib
import json
import sys
from pathlib import Path

from engine.format import keys, markers, names
from engine.format.compress import ZstdCompressor
from engine.format.layout import HEADER_BYTES, Footer
from engine.format.manifest import Layer
from engine.storage.base import Buffer
from tests.engine.format import samples
from tests.engine.format.samples import FULL, INCREMENTAL, SERVER, SERVER_KEY, STORAGE_KEY, TIME, Luck, Objects, Writing
from tests.vectors import chains

FOLDER = Path(__file__).parent
PASSPHRASE = "correct horse battery staple"
SECOND_PASSPHRASE = "Grüße, 備份"
CHEAP = keys.ScryptCost(16, 1, 1)
FORMAT_PAGE = FOLDER.parent.parent / "engine" / "FORMAT.md"


class RecordedCompressor:
    """Gives what is recorded, and records what it compresses first."""

    def __init__(self, recorded: dict[str, str]) -> None:
        self.recorded = recorded
        self._fresh = ZstdCompressor()

    def compress(self, data: Buffer) -> bytes:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.recorded:
            self.recorded[digest] = self._fresh.compress(data).hex()
        return bytes.fromhex(self.recorded[digest])


def repository(how: Writing) -> Objects:
    """Return a repository with one server, two disks, a full and an incremental; the second disk did not change."""
    objects: Objects = {
        names.REPOSITORY: markers.Repository(samples.REPOSITORY, samples.INSTALLATION, markers.FORMAT, TIME).dump()
    }
    wrapped = _put_keys(objects, how) if how.key else ""
    layers: dict[str, tuple[Layer, ...]] = {"vda": (), "vdb": ()}
    vdb = samples.text(900, "seven")
    for backup_id, image, items, parent in (
        (FULL, samples.first_image(), {"vda": samples.FULL_ITEMS, "vdb": (samples.frame((0, 900)),)}, ""),
        (INCREMENTAL, samples.second_image(), {"vda": samples.DIRTY_ITEMS, "vdb": ()}, FULL),
    ):
        intent = markers.Intent(SERVER, backup_id, "job-1", "hypervisor-1", TIME)
        objects[names.intent_name(SERVER, backup_id)] = intent.dump()
        disks = {}
        for disk, content in (("vda", image), ("vdb", vdb)):
            segments = samples.write_layer(objects, how, backup_id, disk, content, items[disk])
            layers[disk] = (*layers[disk], Layer(backup_id, segments))
            value = samples.disk_manifest(how, backup_id, disk, len(content), layers[disk], parent)
            disks[disk] = (value, samples.put_manifest(objects, how, value))
        samples.put_manifest(objects, how, samples.server_manifest(how, backup_id, disks, wrapped))
    objects[names.deleted_name(SERVER, samples.REPOSITORY, "vda")] = markers.Deleted(
        SERVER, samples.REPOSITORY, "vda", "job-2", "hypervisor-1", TIME
    ).dump()
    return objects


def _put_keys(objects: Objects, how: Writing) -> str:
    first = keys.wrap_key(STORAGE_KEY, PASSPHRASE, TIME, CHEAP, how.random)
    objects[names.key_name(first.key_id)] = first.dump()
    both = keys.add_passphrase(first, PASSPHRASE, SECOND_PASSPHRASE, TIME, random=how.random)
    objects[names.key_name(first.key_id, 1)] = both.dump()
    return both.dump().decode()


def tiny(how: Writing) -> bytes:
    """Return the segment that FORMAT.md shows."""
    objects: Objects = {}
    image = bytes(512) + b"sixteen raw byte" + bytes(8192 - 528)
    samples.write_layer(objects, how, FULL, "vda", image, (samples.frame((512, 16)), samples.zero(4096, 4096)))
    return objects[names.segment_name(SERVER, FULL, "vda", 0)]


def records() -> dict[str, dict[str, str]]:
    """Return what Zstandard made of each plaintext, by the file that says so."""
    paths = {name: FOLDER / name for name in ("compressed.json", "chains-compressed.json")}
    return {name: json.loads(path.read_text()) if path.exists() else {} for name, path in paths.items()}


def all_files(recorded: dict[str, dict[str, str]]) -> dict[str, bytes]:
    """Return every vector by its path below this folder; what is not `recorded` is compressed anew."""
    return _first_files(recorded["compressed.json"]) | _chain_files(recorded["chains-compressed.json"])


def _chain_files(recorded: dict[str, str]) -> dict[str, bytes]:
    compressor = RecordedCompressor(dict(recorded))
    files: dict[str, bytes] = {}
    for name, key in (("chain-plain", None), ("chain-sealed", SERVER_KEY)):
        how = Writing(key, Luck(name), compressor, segment_plain_bytes=1500)
        keys_of: Objects = {}
        wrapped = _put_keys(keys_of, how) if key else ""
        objects = chains.repository(how, wrapped) | keys_of
        files |= {f"{name}/{path}": data for path, data in objects.items()}
    files["chains.json"] = _json({step.backup_id: hashlib.sha256(step.image).hexdigest() for step in chains.steps()})
    files["chains-compressed.json"] = _json(compressor.recorded)
    return files


def _first_files(recorded: dict[str, str]) -> dict[str, bytes]:
    compressor = RecordedCompressor(dict(recorded))
    files: dict[str, bytes] = {}
    for name, key in (("plain", None), ("sealed", SERVER_KEY)):
        files[f"tiny/{name}.data"] = tiny(Writing(key, lambda _: bytes(range(64, 96)), compressor))
        objects = repository(Writing(key, Luck(name), compressor, segment_plain_bytes=1500))
        files |= {f"{name}/{path}": data for path, data in objects.items()}
    files["expected.json"] = _json(_expected())
    files["compressed.json"] = _json(compressor.recorded)
    return files


def _expected() -> dict[str, object]:
    vdb = samples.text(900, "seven")
    images = {
        FULL: {"vda": samples.first_image(), "vdb": vdb},
        INCREMENTAL: {"vda": samples.second_image(), "vdb": vdb},
    }
    return {
        "server_id": SERVER,
        "key_id": STORAGE_KEY.key_id,
        "storage_key": STORAGE_KEY.secret.hex(),
        "passphrases": [PASSPHRASE, SECOND_PASSPHRASE],
        "images": {
            backup_id: {disk: hashlib.sha256(image).hexdigest() for disk, image in disks.items()}
            for backup_id, disks in images.items()
        },
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def examples(files: dict[str, bytes]) -> dict[str, str]:
    """Return the text of each example block in FORMAT.md."""
    salt = bytes(range(64, 96))
    derived = {
        "storage key": STORAGE_KEY.secret,
        "server key": SERVER_KEY.secret,
        "key check": SERVER_KEY.check,
        "salt": salt,
        "frames key": SERVER_KEY.derive(salt, "frames"),
        "index key": SERVER_KEY.derive(salt, "index"),
        "manifest key": SERVER_KEY.derive(salt, "manifest"),
        "MAC key": SERVER_KEY.derive(salt, "mac"),
    }
    return {
        "plain.data": dump(files["tiny/plain.data"]),
        "keys": "\n".join(f"{name:<12} {value.hex()}" for name, value in derived.items()),
        "sealed.data": dump(files["tiny/sealed.data"]),
    }


def dump(data: bytes) -> str:
    """Return a segment of one frame as a hex dump by parts."""
    footer = Footer.unpack(data[-144:], data[:HEADER_BYTES], "tiny")
    ends = (HEADER_BYTES, footer.table_offset, footer.table_offset + 36, len(data) - 144, len(data))
    lines, start = [], 0
    for part, end in zip(("header", "frame 0", "table", "map", "footer"), ends, strict=True):
        lines.append(f"{part}:")
        for offset in range(start, end, 16):
            row = data[offset : min(offset + 16, end)]
            readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            lines.append(f"  {offset:04x}  {row.hex(' '):<47}  {readable}")
        start = end
    return "\n".join(lines)


def with_examples(page: str, blocks: dict[str, str]) -> str:
    """Return FORMAT.md's text with its example blocks filled in."""
    for name, block in blocks.items():
        mark = f"<!-- example: {name} -->\n"
        before, after = page.split(mark)
        if after.startswith("```"):
            after = after.split("```\n", 2)[2]
        page = f"{before}{mark}```\n{block}\n```\n{after}"
    return page


def main() -> int:
    """Write what is not there yet. A vector that exists with other bytes is an error: the format has changed."""
    files = all_files(records())
    changed = [
        name for name, data in files.items() if (FOLDER / name).exists() and (FOLDER / name).read_bytes() != data
    ]
    if changed:
        print(f"these vectors would change, which they never do: {', '.join(changed)}", file=sys.stderr)
        return 1
    for name, data in files.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_bytes(data)
    FORMAT_PAGE.write_text(with_examples(FORMAT_PAGE.read_text(), examples(files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
