"""What SFTP has no request for: looking whether something is there, and making, emptying and removing folders.

All functions raise what the session raises, Refused and Lost. `root` is the storage's folder, without a slash at its end.
"""

import stat
from collections.abc import Collection, Sequence
from types import TracebackType

from engine.storage.sftp_wire import Attributes, Code, Refused, Wire
from engine.storage.walk import SweepBudget

_RACE_TRIES = 5


class suppress_code:  # noqa: N801 -- reads like contextlib.suppress
    """Suppress a request that was refused with the status `code`."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, Refused) and error.code == self._code


def is_file(attributes: Attributes) -> bool:
    return stat.S_ISREG(attributes.mode)


def exists(wire: Wire, path: bytes) -> bool:
    with suppress_code(Code.NO_SUCH_FILE):
        wire.lstat(path)
        return True
    return False


def is_folder(wire: Wire, path: bytes) -> bool:
    with suppress_code(Code.NO_SUCH_FILE):
        return stat.S_ISDIR(wire.lstat(path).mode)
    return False


def make_folder(wire: Wire, path: bytes) -> None:
    """Make a folder; one that is already there, or that someone makes at the same moment, is fine."""
    for attempt in range(1, _RACE_TRIES + 1):
        try:
            wire.mkdir(path)
        except Refused as refused:
            if refused.code == Code.NO_SUCH_FILE:
                raise
            if is_folder(wire, path):
                return
            # A failure of its own, or it was there and was removed, being empty, before we looked: the next try tells.
            if attempt == _RACE_TRIES:
                raise
        else:
            return


def make_folders(wire: Wire, root: bytes, parts: Sequence[str]) -> None:
    """Make the folder `parts` below `root` and those above it, from the innermost that is there."""
    paths = _paths(root, parts)
    first = next((depth for depth in range(len(paths), 0, -1) if is_folder(wire, paths[depth - 1])), 0)
    for path in paths[first:]:
        make_folder(wire, path)


def remove_empty(wire: Wire, root: bytes, parts: Sequence[str]) -> None:
    """Remove the folder `parts` below `root` and those above it, up to the first that holds something; never the root."""
    for path in reversed(_paths(root, parts)):
        try:
            wire.rmdir(path)
        except Refused as refused:
            if refused.code != Code.NO_SUCH_FILE:
                return


def sweep(wire: Wire, folder: bytes, keep: Collection[bytes] = (), budget: "SweepBudget | None" = None) -> None:
    """Remove a folder with everything in it but the paths in `keep`; a link is removed, never followed.

    Raises Refused for folders without an end; `budget` is for those further down.
    """
    budget = budget or SweepBudget(folder)
    if not budget.allows(folder):
        raise Refused(Code.FAILURE, "folders without an end")
    with suppress_code(Code.NO_SUCH_FILE):
        for name, attributes in wire.entries(folder):
            if b"/" in name or b"\0" in name:  # a hostile server; the folder then does not become empty
                continue
            path = folder + b"/" + name
            if stat.S_ISDIR(attributes.mode):
                sweep(wire, path, keep, budget)
            elif path not in keep:
                with suppress_code(Code.NO_SUCH_FILE):
                    wire.remove(path)
        if not any(path.startswith(folder + b"/") for path in keep):
            wire.rmdir(folder)


def _paths(root: bytes, parts: Sequence[str]) -> list[bytes]:
    """Return the paths of the folders from the outermost to `parts` itself."""
    return [root + b"/" + "/".join(parts[:depth]).encode() for depth in range(1, len(parts) + 1)]
