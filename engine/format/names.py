"""Object names: where everything lies on a storage. Pure. Source: FORMAT.md, "Names".

    repository.json
    keys/<key_id>.json  keys/<key_id>.<revision>.json
    servers/<server_id>/<backup_id>/intent.json  backup.json
    servers/<server_id>/<backup_id>/<disk>/0000.data  manifest.json  damaged.json  deleted.json

The functions that make names raise InvalidSpec for an id or a disk that cannot be part of one, so that no text from
outside ever becomes a path.
"""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engine import ids
from engine.errors import InvalidSpec

SEGMENTS_MAX = 10_000
REPOSITORY = "repository.json"
KEYS = "keys"
SERVERS = "servers"

Kind: TypeAlias = Literal["repository", "key", "intent", "backup", "segment", "manifest", "damaged", "deleted"]
_DISK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}")
_SEGMENT = re.compile(r"([0-9]{4})\.data")
_KEY = re.compile(r"([0-9a-f-]{36})(?:\.([1-9][0-9]{0,5}))?\.json")
_OF_BACKUP: dict[str, Kind] = {"intent.json": "intent", "backup.json": "backup"}
_OF_DISK: dict[str, Kind] = {"manifest.json": "manifest", "damaged.json": "damaged", "deleted.json": "deleted"}


@dataclass(frozen=True, slots=True)
class ObjectName:
    """A parsed name; what does not belong to its kind is "" or 0. `number` is a segment's number or a key's revision."""

    kind: Kind
    server_id: str = ""
    backup_id: str = ""
    disk: str = ""
    number: int = 0
    key_id: str = ""


def is_disk(text: str) -> bool:
    """Tell whether `text` may be a disk's name: 1 to 32 of `A-Za-z0-9_-`, not beginning with `-`."""
    return _DISK.fullmatch(text) is not None


def key_name(key_id: str, revision: int = 0) -> str:
    if not 0 <= revision < 1_000_000:
        raise InvalidSpec(field="revision", problem=f"{revision} is not between 0 and 999999")
    return f"{KEYS}/{_id('key_id', key_id)}{f'.{revision}' if revision else ''}.json"


def server_folder(server_id: str) -> str:
    return f"{SERVERS}/{_id('server_id', server_id)}"


def backup_folder(server_id: str, backup_id: str) -> str:
    return f"{server_folder(server_id)}/{_id('backup_id', backup_id)}"


def disk_folder(server_id: str, backup_id: str, disk: str) -> str:
    if not is_disk(disk):
        raise InvalidSpec(field="disk", problem=f"{disk!r} is not 1 to 32 of A-Z, a-z, 0-9, _ and -")
    return f"{backup_folder(server_id, backup_id)}/{disk}"


def intent_name(server_id: str, backup_id: str) -> str:
    return f"{backup_folder(server_id, backup_id)}/intent.json"


def backup_name(server_id: str, backup_id: str) -> str:
    return f"{backup_folder(server_id, backup_id)}/backup.json"


def manifest_name(server_id: str, backup_id: str, disk: str) -> str:
    return f"{disk_folder(server_id, backup_id, disk)}/manifest.json"


def damaged_name(server_id: str, backup_id: str, disk: str) -> str:
    return f"{disk_folder(server_id, backup_id, disk)}/damaged.json"


def deleted_name(server_id: str, backup_id: str, disk: str) -> str:
    return f"{disk_folder(server_id, backup_id, disk)}/deleted.json"


def segment_name(server_id: str, backup_id: str, disk: str, number: int) -> str:
    if not 0 <= number < SEGMENTS_MAX:
        raise InvalidSpec(field="segment", problem=f"{number} is not between 0 and {SEGMENTS_MAX - 1}")
    return f"{disk_folder(server_id, backup_id, disk)}/{number:04d}.data"


def parse(name: str) -> ObjectName | None:
    """Return what a name stands for, or None for a name that is not ours. The inverse of the functions above."""
    match name.split("/"):
        case ["repository.json"]:
            return ObjectName("repository")
        case ["keys", file] if (key := _KEY.fullmatch(file)) and ids.is_id(key[1]):
            return ObjectName("key", key_id=key[1], number=int(key[2] or 0))
        case ["servers", server_id, backup_id, *rest] if ids.is_id(server_id) and ids.is_id(backup_id):
            return _parse_rest(server_id, backup_id, rest)
    return None


def _parse_rest(server_id: str, backup_id: str, rest: list[str]) -> ObjectName | None:
    match rest:
        case [file] if file in _OF_BACKUP:
            return ObjectName(_OF_BACKUP[file], server_id, backup_id)
        case [disk, file] if is_disk(disk) and file in _OF_DISK:
            return ObjectName(_OF_DISK[file], server_id, backup_id, disk)
        case [disk, file] if is_disk(disk) and (segment := _SEGMENT.fullmatch(file)):
            return ObjectName("segment", server_id, backup_id, disk, int(segment[1]))
    return None


def _id(field: str, text: str) -> str:
    if not ids.is_id(text):
        raise InvalidSpec(field=field, problem=f"{text!r} is not an id")
    return text
