"""What this host has for storages: the types that it can reach, and which remotes rclone knows here. Told to the controller.

    rclone where the engine looks? ──► the type "rclone"
    rclone.conf ──► names of its sections ──► SHA-256 of each: the controller can ask for one that it knows, and learns no other

Of the configuration nothing else leaves this host (S15), and of the names only what cannot be read back. So a schedule that sends
backups to a remote which is not here is refused while somebody sits there who can put it right, and not at its first run.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.storage.rclone_daemon import PLACES

BYTES_MAX = 1 << 20
REMOTES_MAX = 50  # a hello stays small; a host has a handful
TYPES = ("local", "sftp", "s3", "ftp")
NEEDS_PROGRAM = ("rclone",)  # types of storage that a program of the same name gives
_SECTION = re.compile(rb"^\[([^\]\r\n]{1,128})\][ \t]*\r?$", re.MULTILINE)
_ENCRYPTED = b"RCLONE_ENCRYPT_V"  # a configuration behind a password begins so, after comments


@dataclass(frozen=True, slots=True)
class StorageMeans:
    """`rclone_remotes` are digests of names; `remotes_known` is False where they cannot be told: an encrypted file, or a very large one."""

    types: tuple[str, ...] = ()
    rclone_remotes: tuple[str, ...] = ()
    remotes_known: bool = False


def look(rclone_config_file: Path) -> StorageMeans:
    """Return what this host has now; quick enough to be asked every few seconds."""
    path = f"{os.environ.get('PATH', '')}:{PLACES}"
    types = (*TYPES, *(name for name in NEEDS_PROGRAM if shutil.which(name, path=path)))
    data = _read(rclone_config_file) if "rclone" in types else None
    if data is None:
        return StorageMeans(types)
    remotes = remotes_of(data)
    known = _ENCRYPTED not in data[:4096] and len(remotes) <= REMOTES_MAX
    return StorageMeans(types, remotes if known else (), remotes_known=known)


def remotes_of(data: bytes) -> tuple[str, ...]:
    """Return the digests of the names of a configuration's remotes. Pure."""
    names = {one.strip() for one in _SECTION.findall(data)}
    return tuple(sorted(hashlib.sha256(one).hexdigest() for one in names))


def _read(path: Path) -> bytes | None:
    """Return the configuration, b"" where there is none, None where it cannot be looked at."""
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
    except FileNotFoundError:
        return b""
    except OSError:
        return None
    return data if len(data) <= BYTES_MAX else None
