"""Folders without an end: who lists or removes them comes to one, on servers that tell of folders one at a time."""

import struct
from itertools import islice

import pytest

from engine.errors import StorageError
from engine.storage import sftp_tree, sftp_wire, walk
from engine.storage.sftp_wire import Refused
from engine.storage.walk import SweepBudget, Walk
from tests.engine.storage.test_sftp_wire import HANDLE, NAME, STATUS, packet, wire_to

OPENDIR, READDIR, FAILURE, EOF = 11, 12, 4, 1
FOLDER_MODE = 0o040755


def status(number: int, code: int) -> bytes:
    return packet(STATUS, struct.pack(">III", number, code, 0) + struct.pack(">I", 0))


def folder_in_folder(names: list[bytes]):
    """Answer as a server whose every folder holds folders, and that removes none."""
    listed: set[bytes] = set()

    def answer(kind: int, number: int, body: bytes) -> bytes:
        if kind == OPENDIR:
            handle = b"%d" % number
            return packet(HANDLE, struct.pack(">II", number, len(handle)) + handle)
        if kind == READDIR and body not in listed:
            listed.add(body)
            entries = b"".join(
                struct.pack(">I", len(name)) + name + struct.pack(">III", 0, 4, FOLDER_MODE) for name in names
            )
            return packet(NAME, struct.pack(">II", number, len(names)) + entries)
        return status(number, EOF if kind == READDIR else FAILURE)

    return answer


@pytest.mark.feature("S4")
@pytest.mark.parametrize("names", [[b"d"], [b"d", b"e"]], ids=["deep", "wide"])
def test_a_sweep_by_sftp_of_folders_without_end_ends(monkeypatch, names):
    monkeypatch.setattr(walk, "SWEPT_MAX", 150)
    with wire_to(folder_in_folder(names)) as wire, pytest.raises(Refused, match="without an end"):
        sftp_tree.sweep(wire, b"/s/d")


def test_a_folder_that_names_nothing_for_ever_ends(monkeypatch):
    monkeypatch.setattr(sftp_wire, "FOLDER_ENTRIES_MAX", 100)

    def answer(kind: int, number: int, body: bytes) -> bytes:
        if kind == OPENDIR:
            return packet(HANDLE, struct.pack(">II", number, 1) + b"h")
        return packet(NAME, struct.pack(">II", number, 0)) if kind == READDIR else status(number, FAILURE)

    with wire_to(answer) as wire, pytest.raises(Refused, match="100 entries"):
        wire.entries(b"/s")


def test_a_walk_ends_where_no_object_comes_any_more(monkeypatch):
    monkeypatch.setattr(walk, "BARREN_MAX", 50)
    barren = Walk("sftp:x", "")
    with pytest.raises(StorageError, match="50 folders"):
        list(map(barren.add, barren))
    fruitful = Walk("sftp:x", "")
    for folder in islice(fruitful, 500):
        fruitful.add(f"{folder}/d")
        fruitful.found()


def test_a_walk_keeps_no_more_folders_than_a_repository_has(monkeypatch):
    monkeypatch.setattr(walk, "WAITING_MAX", 100)
    wide = Walk("sftp:x", "")

    def look(folder: str) -> None:
        wide.found()
        for number in range(7):
            wide.add(f"{folder}/{number}")

    with pytest.raises(StorageError, match="without end"):
        list(map(look, wide))


def test_a_sweep_goes_so_deep_and_no_deeper():
    budget = SweepBudget(b"/s/d")
    assert budget.allows(b"/s/d" + b"/x" * walk.DEPTH_MAX)
    assert not budget.allows(b"/s/d" + b"/x" * (walk.DEPTH_MAX + 1))
