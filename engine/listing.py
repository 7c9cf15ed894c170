"""What a storage lists, as far as it is ours: the one place where names from outside come in.

    list, folders ──► below the folder that was asked for? ──► a name of ours? ──► counted ──► the caller
                       no: left out                             no: left out         beyond any repository: StorageError

Every backend leaves out names that are not ours. A server that lies, or a backend's mistake, must not become a path all the
same, nor a listing without end a job without end.
"""

from collections.abc import Iterator
from dataclasses import replace

from engine.errors import StorageError
from engine.format import names
from engine.format.names import ObjectName
from engine.storage.base import Entry, Storage, is_name

# Of one listing, foreign names too. A server of 256 disks with 1000 backups has 800,000 objects.
SERVER_ENTRIES_MAX = 2_000_000
ENTRIES_MAX = 100_000_000  # of all servers; nobody keeps them in memory


def objects(storage: Storage, folder: str, entries_max: int | None = None) -> Iterator[tuple[ObjectName, Entry]]:
    """Yield the objects of ours below `folder`; a size below 0 becomes 0, which is no object's. Raises StorageError."""
    for count, entry in enumerate(storage.list(folder)):
        _check(storage, folder, count, entries_max or SERVER_ENTRIES_MAX)
        if entry.name.startswith(f"{folder}/") and (parsed := names.parse(entry.name)) is not None:
            yield parsed, entry if entry.size_bytes >= 0 else replace(entry, size_bytes=0)


def folders(storage: Storage, folder: str) -> Iterator[str]:
    """Yield the folders directly in `folder` whose names can be ours. Raises StorageError."""
    for count, name in enumerate(storage.folders(folder)):
        _check(storage, folder, count, SERVER_ENTRIES_MAX)
        if "/" not in name and is_name(name):
            yield name


def _check(storage: Storage, folder: str, count: int, entries_max: int) -> None:
    if count >= entries_max:
        detail = f"it has more than {entries_max} names, as no repository has"
        raise StorageError(storage=storage.label, step=f"list {folder}", detail=detail)
