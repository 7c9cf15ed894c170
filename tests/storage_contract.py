"""What every storage must do. A backend's test supplies the fixture `place`, and inherits the rest.

    class TestLocal(StorageContract):
        @pytest.fixture
        def place(self, tmp_path): ...     # a Place (`storage_places.py`): how to open this storage anew, and look below it

What a storage says that it cannot do (`Abilities`) is not asked of it, and what then holds instead is: without exclusive
creation a name that is taken is still refused when the block begins and when it ends, but of two writers whose blocks end at
the same instant both may believe that the object is theirs; it is then one of theirs, whole.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import spec
from engine.errors import (
    InvalidName,
    ObjectExists,
    ObjectNotFound,
    ObjectTruncated,
    StorageError,
    StorageUnreachable,
)
from engine.storage.base import NAME_BYTES_MAX, Storage
from engine.units import KIB, MIB
from tests.storage_places import FolderPlace, Place
from tests.waiting import wait_until

WAIT_SECONDS = 30.0
WEEK_SECONDS = 7 * 86_400.0
RACERS = 8
# Writes 4 MiB to the object argv[1] of the storage on stdin, says so, and waits for its end.
WRITER = """
import sys
from engine import spec
from engine.storage.open import open_storage
storage = open_storage(spec.load(spec.StorageSpec, sys.stdin.readline()))
with storage.create(sys.argv[1]) as sink:
    sink.write(bytes(4 << 20))
    print("written", flush=True)
    sys.stdin.readline()
"""


class StorageContract:
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        raise NotImplementedError

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[Storage]:
        with place.open() as storage:
            yield storage

    # ---- writing --------------------------------------------------------------------------------------------------------

    def test_what_is_put_comes_back(self, storage):
        storage.put("servers/a/backup.json", b"content")
        assert storage.get("servers/a/backup.json") == b"content"
        assert storage.size("servers/a/backup.json") == 7

    def test_an_empty_object_is_an_object(self, storage):
        storage.put("empty", b"")
        assert storage.get("empty") == b""
        assert [(entry.name, entry.size_bytes) for entry in storage.list()] == [("empty", 0)]

    def test_odd_write_sizes_add_up(self, storage):
        data = os.urandom(20 * MIB)
        with storage.create("d/large") as sink:
            position, size = 0, 1
            while position < len(data):
                sink.write(memoryview(data)[position : position + size])
                position, size = position + size, (size * 3 + 7) % (5 * MIB)
        with_reader = storage.open("d/large")
        try:
            assert with_reader.size_bytes == len(data)
            assert with_reader.read_at(0, len(data)) == data
        finally:
            with_reader.close()

    def test_the_buffer_of_a_write_may_be_reused_at_once(self, storage):
        buffer = bytearray(1 * MIB + 13)
        with storage.create("reused") as sink:
            for number in range(8):
                buffer[:] = bytes([number]) * len(buffer)
                sink.write(buffer)
            buffer[:] = b"\xff" * len(buffer)
        assert storage.get("reused") == b"".join(bytes([number]) * len(buffer) for number in range(8))

    def test_any_buffer_can_be_written(self, storage):
        with storage.create("buffers") as sink:
            sink.write(b"ab")
            sink.write(bytearray(b"cd"))
            sink.write(memoryview(b"xefx")[1:3])
            sink.write(memoryview(bytes(8)).cast("Q"))
            sink.write(b"")
        assert storage.get("buffers") == b"abcdef" + bytes(8)

    def test_an_object_is_not_there_before_its_block_ends(self, storage, place):
        with storage.create("d/object") as sink:
            sink.write(bytes(1 * MIB))
            with pytest.raises(ObjectNotFound):
                storage.size("d/object")
            with pytest.raises(ObjectNotFound):
                storage.open("d/object")
            assert list(storage.list()) == []
        assert storage.size("d/object") == 1 * MIB
        assert place.files() == ["d/object"]

    def test_a_failed_block_leaves_no_trace(self, storage, place):
        def fail() -> None:
            with storage.create("d/e/object") as sink:
                sink.write(bytes(3 * MIB))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert place.traces() == []
        storage.put("d/e/object", b"second try")
        assert storage.get("d/e/object") == b"second try"

    def test_the_callers_own_os_error_stays_its_own(self, storage):
        with pytest.raises(FileNotFoundError), storage.create("object"):
            raise FileNotFoundError(2, "not the storage's")

    # ---- exclusive ------------------------------------------------------------------------------------------------------

    @pytest.mark.feature("S29")
    def test_nothing_is_rewritten(self, storage):
        storage.put("object", b"first")
        with pytest.raises(ObjectExists) as caught:
            storage.put("object", b"second")
        assert caught.value.facts["name"] == "object"
        assert storage.get("object") == b"first"

    def test_a_name_taken_meanwhile_is_refused_at_the_end(self, storage, place):
        def come_late() -> None:
            with storage.create("object") as sink, place.open() as other:
                sink.write(b"late")
                other.put("object", b"early")

        with pytest.raises(ObjectExists):
            come_late()
        assert storage.get("object") == b"early"
        assert place.files() == ["object"]

    def test_a_race_has_one_winner(self, storage, place):
        start = threading.Barrier(RACERS)

        def race(number: int) -> bool:
            start.wait(WAIT_SECONDS)
            try:
                storage.put("d/one", b"%d" % number)
            except ObjectExists:
                return False
            return True

        with ThreadPoolExecutor(RACERS) as pool:
            won = list(pool.map(race, range(RACERS)))
        assert won.count(True) == 1 or (any(won) and not storage.abilities.exclusive_create)
        assert won[int(storage.get("d/one"))]
        assert place.files() == ["d/one"]

    def test_folders_are_made_and_removed_beside_each_other(self, storage, place):
        def churn(number: int) -> None:
            for turn in range(10):
                name = f"servers/a/{number}-{turn}"
                storage.put(name, b"x")
                storage.delete(name)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(churn, range(4)))
        assert place.traces() == []

    def test_a_killed_writer_leaves_nothing_under_the_name(self, storage, place):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, "d/object"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(spec.dump(place.spec) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
        with pytest.raises(ObjectNotFound):
            storage.size("d/object")
        assert list(storage.list()) == []
        storage.put("d/object", b"next attempt")
        assert [entry.name for entry in storage.list()] == ["d/object"]
        storage.sweep("d")
        assert place.traces() == []

    # ---- lost connections -----------------------------------------------------------------------------------------------

    @pytest.mark.feature("C12")
    @pytest.mark.parametrize("mib", [0.1, 1, 3, 5])
    def test_an_upload_whose_connection_is_lost_is_resumed_or_leaves_nothing(self, storage, place, mib):
        data = os.urandom(6 * MIB)
        resumed = cut_while_writing(storage, place, data, [int(mib * MIB)])
        assert resumed or (place.cut is not None and not storage.abilities.resume)
        assert place.files() == (["d/object"] if resumed else [])
        assert not resumed or storage.get("d/object") == data

    @pytest.mark.feature("C12")
    def test_an_upload_survives_many_lost_connections(self, storage, place):
        if place.cut is None or not storage.abilities.resume:
            return  # the one above shows what happens then
        data = os.urandom(12 * MIB)
        assert cut_while_writing(storage, place, data, range(1 * MIB, 12 * MIB, 2 * MIB))
        assert storage.get("d/object") == data
        assert place.files() == ["d/object"]

    @pytest.mark.feature("C12")
    def test_a_connection_lost_before_the_end_costs_nothing(self, storage, place):
        if place.cut is None or not storage.abilities.resume:
            return
        with storage.create("d/object") as sink:
            sink.write(b"content")
            place.cut()
        assert storage.get("d/object") == b"content"
        assert place.files() == ["d/object"]

    @pytest.mark.feature("C12")
    def test_a_failed_block_leaves_no_trace_without_its_connection_either(self, storage, place):
        def fail() -> None:
            with storage.create("d/object") as sink:
                sink.write(bytes(3 * MIB))
                if place.cut is not None:
                    place.cut()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert place.files() == []

    @pytest.mark.feature("C12")
    def test_a_name_taken_while_the_connection_was_lost_is_refused(self, storage, place):
        def come_late() -> None:
            with storage.create("object") as sink, place.open() as other:
                sink.write(bytes(2 * MIB))
                other.put("object", b"early")
                if place.cut is not None:
                    place.cut()

        with pytest.raises(ObjectExists if place.cut is None or storage.abilities.resume else StorageError):
            come_late()
        assert storage.get("object") == b"early"
        assert place.files() == ["object"]

    @pytest.mark.feature("C12")
    def test_a_reader_goes_on_after_a_lost_connection(self, storage, place):
        data = os.urandom(2 * MIB)
        storage.put("object", data)
        reader = storage.open("object")
        try:
            for offset in (0, 100, 1 * MIB):
                if place.cut is not None:
                    place.cut()
                assert reader.read_at(offset, 1 * MIB) == data[offset : offset + 1 * MIB]
        finally:
            reader.close()

    # ---- reading --------------------------------------------------------------------------------------------------------

    def test_ranges_are_exact(self, storage):
        data = os.urandom(3 * MIB + 5)
        storage.put("object", data)
        reader = storage.open("object")
        try:
            for offset, length in (
                (0, 1),
                (0, 0),
                (len(data), 0),
                (250 * KIB - 1, 2),
                (1, 2 * MIB),
                (len(data) - 1, 1),
            ):
                assert reader.read_at(offset, length) == data[offset : offset + length]
                target = bytearray(length)
                reader.read_into(offset, memoryview(target))
                assert target == data[offset : offset + length]
        finally:
            reader.close()

    def test_reading_past_the_end_is_an_error(self, storage):
        storage.put("object", bytes(1000))
        reader = storage.open("object")
        try:
            for offset, length in ((0, 1001), (999, 2), (1000, 1), (5000, 10), (0, 9 * MIB)):
                with pytest.raises(ObjectTruncated):
                    reader.read_at(offset, length)
            assert len(reader.read_at(0, 1000)) == 1000
        finally:
            reader.close()

    def test_an_object_cut_after_the_open_is_an_error(self, storage, place):
        storage.put("object", bytes(1 * MIB))
        reader = storage.open("object")
        try:
            place.truncate("object", 300 * KIB)
            with pytest.raises(ObjectTruncated) as caught:
                reader.read_at(0, 1 * MIB)
            assert caught.value.facts["end"] == str(300 * KIB)
        finally:
            reader.close()

    def test_readers_share_an_object(self, storage):
        data = os.urandom(8 * MIB)
        storage.put("object", data)
        reader = storage.open("object")

        def read(number: int) -> bool:
            offset = number * 999_983 % (7 * MIB)
            target = bytearray(700_001)
            reader.read_into(offset, memoryview(target))
            return bool(target == data[offset : offset + 700_001])

        try:
            with ThreadPoolExecutor(RACERS) as pool:
                assert all(pool.map(read, range(40)))
        finally:
            reader.close()

    def test_get_refuses_what_is_too_large(self, storage):
        storage.put("object", bytes(1001))
        assert len(storage.get("object", 1001)) == 1001
        with pytest.raises(ObjectTruncated):
            storage.get("object", 1000)

    def test_what_is_not_there_is_not_found(self, storage):
        storage.put("d/object", b"x")
        for name in ("nothing", "d/nothing", "no/such/folder", "d"):
            with pytest.raises(ObjectNotFound) as caught:
                storage.size(name)
            assert caught.value.facts["name"] == name
            with pytest.raises(ObjectNotFound):
                storage.open(name)
            with pytest.raises(ObjectNotFound):
                storage.get(name)

    # ---- listing and deleting -------------------------------------------------------------------------------------------

    def test_a_deep_tree_is_listed_whole(self, storage):
        names = {f"servers/{server}/{backup}/{disk}/0000.data" for server in "ab" for backup in "cde" for disk in "fg"}
        names |= {"repository.json", "servers/a/c/backup.json", "x/" * 60 + "deep"}
        for name in names:
            storage.put(name, name.encode())
        entries = list(storage.list())
        assert {entry.name for entry in entries} == names
        assert len(entries) == len(names)
        assert all(entry.size_bytes == len(entry.name) for entry in entries)
        assert all(entry.modified_time > 1_600_000_000 for entry in entries)
        assert {entry.name for entry in storage.list("servers/a")} == {n for n in names if n.startswith("servers/a/")}
        assert list(storage.list("servers/nobody")) == []
        assert list(storage.list("repository.json")) == []

    def test_a_prefix_is_a_folder_not_a_beginning(self, storage):
        storage.put("servers/ab/object", b"")
        storage.put("servers/a/object", b"")
        assert [entry.name for entry in storage.list("servers/a")] == ["servers/a/object"]

    def test_folders_are_those_directly_inside(self, storage, place):
        for name in ("repository.json", "servers/a/one/disk/0000.data", "servers/b/two/backup.json", "keys/k.json"):
            storage.put(name, b"x")
        place.plant(b"servers/.hidden/object")
        place.plant(b"servers/a space/object")
        place.plant_odd("servers")
        assert sorted(storage.folders()) == ["keys", "servers"]
        assert sorted(storage.folders("servers")) == ["a", "b"]
        assert list(storage.folders("servers/a/one")) == ["disk"]
        assert list(storage.folders("servers/a/one/disk")) == []
        assert list(storage.folders("never/was")) == []

    def test_unfinished_and_foreign_names_are_left_out(self, storage, place):
        storage.put("d/object", b"x")
        place.plant_unfinished("d/other")
        for planted in (
            "d/.hidden", "d/with space", "d/-dash", "d/line\nbreak", "d/ä", "d/e.part", "..data/object", "d//double", "/d/root",
            "../object", "d/../object", "d/./object", "d/nul\0", "d/back\\slash", "e" * 201,
        ):  # fmt: skip
            place.plant(planted.encode())
        place.plant(b"d/\xff\xfe")
        place.plant_odd("d")
        assert [entry.name for entry in storage.list()] == ["d/object"]
        assert list(storage.folders()) == ["d"]

    def test_what_killed_writers_left_beside_backups_goes_when_it_is_old(self, storage, place):
        if not isinstance(place, FolderPlace):
            assert not storage.parts("")  # a bucket's unfinished uploads are no objects
            return
        stale = ["keys/k.json.0123456789ab.part", "repository.json.0123456789ab.part", "test/x.0123456789ab.part"]
        foreign = ["keys/tune.part", "movie.part", "test/notes.0123456789AB.part"]
        storage.put("keys/k.json", b"key")  # so that the folders are the server's
        storage.put("test/young", b"x")
        for name in (*stale, *foreign, "test/young.aaaaaaaaaaaa.part"):
            place.plant(name.encode())
        for name in (*stale, *foreign):
            os.utime(place.folder / name, (time.time() - 2 * WEEK_SECONDS,) * 2)
        before = place.files()
        assert sorted(storage.remove_stale(WEEK_SECONDS, dry_run=True)) == stale
        assert place.files() == before
        assert sorted(storage.remove_stale(WEEK_SECONDS)) == stale
        assert place.files() == [one for one in before if one not in stale]

    def test_a_link_or_a_pipe_is_no_object(self, storage, place):
        for name in place.plant_odd(""):
            with pytest.raises(StorageError):
                storage.open(name)
            with pytest.raises(ObjectNotFound):
                storage.size(name)
            with pytest.raises(ObjectExists):
                storage.put(name, b"x")
        assert place.outside_is_whole()

    def test_deleting_removes_empty_folders(self, storage, place):
        storage.put("servers/a/b/object", b"x")
        storage.put("servers/c", b"x")
        storage.delete("servers/a/b/object")
        assert place.files() == ["servers/c"]
        assert "servers/a" not in place.traces()
        storage.delete("servers/a/b/object")
        storage.delete("never/was")
        storage.delete("servers/c")
        assert place.traces() == []

    def test_a_sweep_takes_everything_below_a_folder(self, storage, place):
        for name in ("servers/a/one/d/0000.data", "servers/a/one/intent.json", "servers/a/two/backup.json"):
            storage.put(name, b"x")
        place.plant_unfinished("servers/a/one/d/0001.data")
        place.plant_odd("servers/a/one")
        storage.sweep("servers/a/one")
        assert place.files() == ["servers/a/two/backup.json"]
        assert place.outside_is_whole()
        storage.sweep("servers/a/one")
        storage.sweep("servers/a/two")
        assert place.traces() == []

    @pytest.mark.feature("C12")
    def test_a_sweep_leaves_what_is_to_be_kept(self, storage, place):
        for name in ("s/one/vda/0000.data", "s/one/vda/0001.data", "s/one/vdb/0000.data", "s/one/intent.json", "s/two"):
            storage.put(name, b"x")
        place.plant_unfinished("s/one/vda/0002.data")
        storage.sweep("s/one", ("s/one/intent.json", "s/one/vda/0000.data"))
        assert place.files() == ["s/one/intent.json", "s/one/vda/0000.data", "s/two"]
        assert "s/one/vdb" not in place.traces()
        storage.sweep("s/one", ("s/one/never.was",))
        assert place.files() == ["s/two"]

    # ---- names ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "name",
        [
            "", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "a/./b", "a//b", "a/", ".hidden", "a/.b", "a\0b",
            "a\n", "a b", "a\\b", "ä", "-a", "a.part", "a" * 201, "/".join(["a" * 100] * 6), "a" * (NAME_BYTES_MAX + 1),
        ],
    )  # fmt: skip
    def test_bad_names_are_refused(self, storage, place, name):
        calls: list[Callable[[], object]] = [
            lambda: storage.create(name),
            lambda: storage.open(name),
            lambda: storage.size(name),
            lambda: storage.delete(name),
            lambda: storage.sweep(name),
        ]
        if name:
            calls.append(lambda: list(storage.list(name)))
            calls.append(lambda: list(storage.folders(name)))
        for call in calls:
            with pytest.raises(InvalidName):
                call()
        assert place.traces() == []

    def test_the_longest_names_work(self, storage):
        name = "/".join(["a" * 200, "b" * 200, "c" * (NAME_BYTES_MAX - 402)])
        storage.put(name, b"x")
        assert [entry.name for entry in storage.list()] == [name]

    # ---- the rest -------------------------------------------------------------------------------------------------------

    @pytest.mark.feature("H4")
    def test_usage_is_that_of_the_file_system(self, storage, place):
        usage = storage.usage()
        if not storage.abilities.usage:
            assert usage is None
            return
        assert usage.total_bytes == place.total_bytes()
        assert 0 < usage.free_bytes <= usage.total_bytes

    def test_an_interrupt_ends_a_blocked_write(self, storage, place):
        begun, enough, ended = threading.Event(), threading.Event(), []

        def write_forever() -> None:
            try:
                with storage.create("d/object") as sink:
                    data = bytes(256 * KIB)
                    for _ in range(1_000_000):
                        sink.write(data)
                        begun.set()
                        if enough.is_set():
                            return
            except BaseException as error:  # whatever it is, the test judges it
                ended.append(error)

        thread = threading.Thread(target=write_forever, daemon=True)
        thread.start()
        try:
            assert begun.wait(WAIT_SECONDS)
            storage.interrupt()
            wait_until(lambda: ended, WAIT_SECONDS, "the write to end")
        finally:
            enough.set()
            thread.join(WAIT_SECONDS)
        assert isinstance(ended[0], StorageUnreachable)
        with pytest.raises(StorageUnreachable):
            storage.put("after", b"")
        with pytest.raises(StorageUnreachable):
            list(storage.list())
        with place.open() as other:
            assert list(other.list()) == []

    def test_a_second_connection_sees_the_same(self, storage, place):
        storage.put("object", b"x")
        with place.open() as other:
            assert other.get("object") == b"x"
            other.delete("object")
        assert list(storage.list()) == []

    def test_the_label_names_the_place(self, storage, place):
        assert place.where in storage.label


def cut_while_writing(storage: Storage, place: Place, data: bytes, cuts: Iterable[int]) -> bool:
    """Write `d/object` in pieces of 64 KiB, and lose the connection at each position of `cuts`; tell whether it was written."""
    waiting = sorted(cuts)
    try:
        with storage.create("d/object") as sink:
            for position in range(0, len(data), 64 * KIB):
                sink.write(memoryview(data)[position : position + 64 * KIB])
                if waiting and position >= waiting[0]:
                    waiting.pop(0)
                    if place.cut is not None:
                        place.cut()
    except StorageUnreachable:
        return False
    return True
