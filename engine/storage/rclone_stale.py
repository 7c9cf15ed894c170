"""Uploads in parts that were left on a remote of rclone's type s3: in no listing, and paid for (C10).

rclone gives up by itself what it cannot finish, but not when it is killed, nor when its line is gone. Two commands of that backend help:

    list-multipart-uploads   all whose keys begin with a text: asked of the folder `d` it tells those of `d2` too
    cleanup                  gives up all whose keys begin with a text and that are older than an age

So first it is looked whom a cleanup would hit. One that could hit what is not meant is asked of single names instead; and of a name
without its last letter, since rclone takes the whole one for a file once an object is there.
"""

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engine.errors import StorageError, StorageThrottled, StorageUnreachable
from engine.storage.base import is_name
from engine.storage.rclone_wire import Wire

if TYPE_CHECKING:
    from engine.storage.rclone import RcloneStorage

log = logging.getLogger(__name__)

_ANY_AGE = "-24h"  # also what was begun a moment ago by a storage's clock that is ahead of ours


def give_up(storage: "RcloneStorage", folder: str, age_seconds: float, *, dry_run: bool = False) -> list[str]:
    """Give up the uploads below `folder` that were begun longer ago than `age_seconds`, below 0 all; return their names.

    Where the remote cannot tell there are none to see. Raises StorageUnreachable and StorageThrottled.
    """
    if not storage.remote.writes_whole:
        return []
    try:
        return _give_up(storage, folder, age_seconds, dry_run=dry_run)
    except (StorageUnreachable, StorageThrottled):
        raise
    except StorageError as error:  # not every S3 server has such a list, and not every key may see it
        log.warning("unfinished uploads cannot be seen to storage=%s reason=%s", storage.label, error)
        return []


def give_up_one(storage: "RcloneStorage", name: str) -> None:
    """Give up the uploads of one name, whatever their age. Raises StorageUnreachable and StorageThrottled."""
    if storage.remote.writes_whole and set(_uploads(storage, name[:-1])) == {name}:
        _clean(storage, name[:-1], _ANY_AGE)


def _give_up(storage: "RcloneStorage", folder: str, age_seconds: float, *, dry_run: bool) -> list[str]:
    begun, now = _uploads(storage, folder), time.time()
    meant = {name for name in begun if is_name(name) and (not folder or name.startswith(f"{folder}/"))}
    stale = sorted(name for name in meant if age_seconds < 0 or 0 < begun[name] < now - age_seconds)
    if dry_run or not stale:
        return stale
    if meant == set(begun):
        _clean(storage, folder, _ANY_AGE if age_seconds < 0 else f"{int(age_seconds)}s")
    else:
        for name in stale:
            give_up_one(storage, name)
    log.info("stale uploads were given up storage=%s count=%d", storage.label, len(stale))
    return stale


def _uploads(storage: "RcloneStorage", beginning: str) -> dict[str, float]:
    """Return when the last upload of each name was begun, in Unix seconds, of all names with this beginning and others' beside ours.

    A name that is not below the storage's folder has its bucket before it, and a slash before that: no name of ours has.
    """
    answer = storage.attempt(
        "list the uploads of", beginning, lambda wire: _command(storage, wire, "list-multipart-uploads", beginning, {})
    )
    found: dict[str, float] = {}
    for bucket, uploads in (answer or {}).items():
        for one in uploads or ():
            path = f"{bucket}/{one['Key']}"
            name = path.removeprefix(f"{storage.root}/") if path.startswith(f"{storage.root}/") else f"/{path}"
            found[name] = max(found.get(name, 0.0), _time(str(one.get("Initiated") or "")))
    return found


def _clean(storage: "RcloneStorage", beginning: str, age: str) -> None:
    options = {"max-age": age}
    storage.attempt("clean", beginning, lambda wire: _command(storage, wire, "cleanup", beginning, options))


def _command(storage: "RcloneStorage", wire: Wire, command: str, beginning: str, options: Mapping[str, str]) -> Any:
    fs = f"{storage.fs}/{beginning}" if beginning else storage.fs
    return wire.call(
        "backend/command", storage.patience.answer_seconds, command=command, fs=fs, opt=dict(options)
    )["result"]  # fmt: skip


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return 0.0
