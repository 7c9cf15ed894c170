"""What FTP has no command for: looking whether something is there, listing, and making, emptying and removing folders.

All functions raise what the connection raises, Refused and Lost. Paths are absolute. An error reply says little (550 is "not
there", "not permitted" and "not empty" alike), so what it meant is found by asking: RNFR is answered with 350 for whatever is
there, of any kind, and changes nothing without the RNTO that never follows.
"""

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from engine.storage.base import is_name
from engine.storage.ftp_list import ENTRIES_MAX, Listed, parse_list, parse_mlsd, parse_time
from engine.storage.ftp_wire import Control, Lost, Refused
from engine.storage.walk import SweepBudget
from engine.units import KIB, MIB

LISTING_BYTES_MAX = 64 * MIB
_RACE_TRIES = 5
_DENIED = re.compile(r"permission|denied|privilege|not allowed|not permitted|read.only|forbidden", re.IGNORECASE)
_UNKNOWN = (500, 502, 504)  # the server does not know the command, or not so


def denied(refused: Refused) -> bool:
    """Tell whether a refusal says in words that it is one of permission."""
    return bool(_DENIED.search(refused.text))


def exists(control: Control, path: str) -> bool:
    """Tell whether there is anything at all by the name `path`."""
    try:
        control.command(f"RNFR {path}")
    except Refused as refused:
        if denied(refused) or refused.code in _UNKNOWN:
            raise
        return False
    return True


def is_folder(control: Control, path: str, *, leave: bool = True) -> bool:
    """Tell whether there is a folder by the name `path`; the session is left in it unless it is to `leave` it."""
    try:
        control.command(f"CWD {path}")
    except Refused:
        return False
    if leave:
        with suppress(Refused):  # some servers cannot remove the folder that a session is in
            control.command("CWD /")
    return True


def size(control: Control, path: str) -> int | None:
    """Return a file's size, None if there is no file of that name. Raises Refused for want of permission."""
    try:
        text = control.command(f"SIZE {path}")[4:].strip()
    except Refused as refused:
        if denied(refused):
            raise
        if refused.code not in _UNKNOWN:
            return None
        folder, _, name = path.rpartition("/")
        return next((one.size for one in entries(control, folder or "/") if one.name == name and one.file), None)
    if not (text.isascii() and text.isdigit()):
        raise Lost(f"the answer to SIZE makes no sense: {control.decent(text)}")
    return int(text)


def modified_time(control: Control, path: str) -> float | None:
    """Return when a file was written, Unix seconds; None where the server cannot tell."""
    with suppress(Refused):
        return parse_time(control.command(f"MDTM {path}")[4:].strip())
    return None


# ---- listing ------------------------------------------------------------------------------------------------------------


def entries(control: Control, path: str) -> list[Listed]:
    """Return what is in a folder; nothing for one that is not there. Names are as the server says them: believe none."""
    try:
        return _by_mlsd(control, path) if "MLST" in control.features else _by_list(control, path)
    except Refused as refused:
        # An empty answer must not stand for a refused one: somebody would conclude that nothing is there.
        if denied(refused) or (exists(control, path) and is_folder(control, path)):
            raise
        with suppress(Refused):
            if exists(control, path) and size(control, path) is None:
                raise refused from None
        return []


def _by_mlsd(control: Control, path: str) -> list[Listed]:
    try:
        return _without_doubt(control, path, parse_mlsd(lines(control, f"MLSD {path}")))
    except Refused as refused:
        if refused.code not in _UNKNOWN:
            raise
        control.features.pop("MLST")
        return _by_list(control, path)


def _by_list(control: Control, path: str) -> list[Listed]:
    control.command(
        f"CWD {path}"
    )  # in it no path has to be understood by what makes the listing: blanks, wildcards, options
    found = parse_list(lines(control, "LIST"), datetime.now(UTC))
    if found is None:
        names = (line.rsplit("/", 1)[-1] for line in lines(control, "NLST"))
        found = [Listed(name, folder=False, file=True, size=0, time=None, doubtful=True) for name in names]
    return _without_doubt(control, path, found)


def _without_doubt(control: Control, path: str, found: list[Listed]) -> list[Listed]:
    """Ask the server about each doubtful entry that could be ours, and leave out the others."""
    sure = [one for one in found if not one.doubtful]
    for one in found:
        if one.doubtful and is_name(one.name):
            inner = f"{path.rstrip('/')}/{one.name}"
            known = size(control, inner)
            if known is not None:
                sure.append(Listed(one.name, folder=False, file=True, size=known, time=modified_time(control, inner)))
            elif is_folder(control, inner):
                sure.append(Listed(one.name, folder=True, file=False, size=0, time=None))
    return sure


def lines(control: Control, command: str) -> list[str]:
    """Return what a listing command sends, line by line. Raises Refused also for one that the server could not open."""
    transfer = control.transfer(command)
    received = bytearray()
    try:
        while piece := transfer.sock.recv(64 * KIB):
            received += piece
            if len(received) > LISTING_BYTES_MAX or received.count(b"\n", -len(piece)) > ENTRIES_MAX:
                raise OSError("a listing without end")
    except (OSError, ValueError) as error:
        control.broken = True
        control.drop_data(transfer.sock)
        raise Lost(str(error)) from error
    answer = transfer.finish()
    if "failed to open" in answer:  # vsftpd, for a folder that may not be read: with a reply of success
        raise Refused(550, "permission denied: the folder cannot be read")
    found = received.decode("utf-8", "surrogateescape").split("\n")
    if len(found) > ENTRIES_MAX:
        raise Refused(550, f"a folder with more than {ENTRIES_MAX} entries")
    return [line.rstrip("\r") for line in found if line]


# ---- folders ------------------------------------------------------------------------------------------------------------


def make_folder(control: Control, path: str) -> None:
    """Make a folder; one that is already there, or that someone makes at the same moment, is fine."""
    for attempt in range(1, _RACE_TRIES + 1):
        try:
            control.command(f"MKD {path}")
        except Refused:
            if is_folder(control, path):
                return
            # A failure of its own, or it was there and was removed, being empty, before we looked: the next try tells.
            if attempt == _RACE_TRIES:
                raise
        else:
            return


def make_folders(control: Control, root: str, parts: Sequence[str]) -> None:
    """Make the folder `parts` below `root` and those above it, from the innermost that is there."""
    paths = _paths(root, parts)
    first = next((depth for depth in range(len(paths), 0, -1) if is_folder(control, paths[depth - 1])), 0)
    for path in paths[first:]:
        make_folder(control, path)


def remove_empty(control: Control, root: str, parts: Sequence[str]) -> None:
    """Remove the folder `parts` below `root` and those above it, up to the first that holds something; never the root."""
    for path in reversed(_paths(root, parts)):
        try:
            control.command(f"RMD {path}")
        except Refused as refused:
            if denied(refused) or exists(control, path):
                return


def remove(control: Control, path: str) -> None:
    """Remove a file, a link or the like; one that is not there is no error."""
    try:
        control.command(f"DELE {path}")
    except Refused:
        if exists(control, path):
            raise


def sweep(control: Control, folder: str, keep: Collection[str] = (), budget: SweepBudget | None = None) -> None:
    """Remove a folder with everything in it but the paths in `keep`; a link is removed, never followed.

    Raises Refused for folders without an end; `budget` is for those further down.
    """
    budget = budget or SweepBudget(folder.encode())
    if not budget.allows(folder.encode()):
        raise Refused(451, "folders without an end")
    for one in entries(control, folder):
        if one.name in {"", ".", ".."} or any(character in one.name for character in "/\r\n\0"):
            continue  # a hostile server; the folder then does not become empty
        path = f"{folder}/{one.name}"
        if path in keep:
            continue
        holds_kept = any(name.startswith(path + "/") for name in keep)
        if one.folder and (holds_kept or not _is_removed_as_file(control, path)):
            sweep(control, path, keep, budget)
        elif not one.folder:
            remove(control, path)
    if not any(path.startswith(folder + "/") for path in keep) and exists(control, folder):
        control.command(f"RMD {folder}")


def _is_removed_as_file(control: Control, path: str) -> bool:
    """Remove what a listing calls a folder and what is a link to one: MLSD tells many servers' links as what they lead to."""
    if "MLST" not in control.features:
        return False  # LIST shows links as links
    with suppress(Refused):
        control.command(f"DELE {path}")
        return True
    return False


def _paths(root: str, parts: Sequence[str]) -> list[str]:
    """Return the paths of the folders from the outermost to `parts` itself."""
    return [f"{root}/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
