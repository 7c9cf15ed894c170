"""What every storage must hold to when its server or the line to it fails. A backend's test supplies `exposed` and inherits the rest.

    class TestSftpInterrupted(StorageInterruptions):
        @pytest.fixture
        def exposed(self, server, tmp_path): ...     # an Exposed: how to open this storage, and how to break it

    client ──► Proxy: cut, stalled, vanished, refused ──► server: stopped, started, its credentials revoked, its disk full

In each case: an object is whole under its name and identical, or nothing is there and a sweep leaves nothing of it. Nobody
waits for ever, and no byte that is read is wrong. Cases that no reader of `make test` waits for run in `make kill`.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from engine.errors import ObjectNotFound, StorageError, StorageFull, StorageLoginFailed, StorageUnreachable
from engine.storage.base import Storage
from engine.units import KIB, MIB
from tests.servers.proxy import Direction, Proxy
from tests.waiting import wait_until

UPLOAD_MIB = 17
PIECE_BYTES = 256 * KIB
READ_BYTES = 2 * MIB
SILENCE_SECONDS_MAX = 120  # so long may a peer that says nothing hold up a job before it is given up or replaced
SMALL_BYTES = 50_000  # a manifest
LATE_SECONDS = 15


@dataclass
class Exposed:
    """A storage whose server, and the line to it, a test may break.

    `open` opens it over `line` and waits for seconds only where the product waits for minutes; `honest` opens it past the line.
    `everything` names all that lies there, unfinished uploads included. `waits` are the waits of the product's own settings,
    in seconds, by their names. `revoke` makes the credentials void and ends the sessions; what it returns makes them good again.
    """

    open: Callable[[], Storage]
    honest: Callable[[], Storage]
    everything: Callable[[], list[str]]
    line: Proxy | None = None
    stop: Callable[[], object] | None = None
    start: Callable[[], object] | None = None
    revoke: Callable[[], Callable[[], object]] | None = None
    waits: Mapping[str, float] = field(default_factory=dict)
    give_up_seconds: float = 60.0  # within this `open` has given up whatever it waited for
    patient: Callable[[], Storage] | None = None  # opens it so that it waits for as long as a restart takes
    forgets_writers: bool = True  # False: the server keeps a file locked for a writer that it has not seen go


@functools.cache
def content() -> bytes:
    return os.urandom(UPLOAD_MIB * MIB + 4321)


class StorageInterruptions:
    @pytest.fixture
    def exposed(self) -> Iterator[Exposed]:
        raise NotImplementedError

    # ---- the line -------------------------------------------------------------------------------------------------------

    @pytest.mark.share(9)
    @pytest.mark.parametrize("mib", range(UPLOAD_MIB + 1))
    def test_a_line_cut_at_any_megabyte_of_an_upload(self, exposed, mib):
        with exposed.open() as storage, struck(exposed):
            exposed.line.cut_after(mib * MIB + 1234)
            error = upload(storage)
            assert error is None or not storage.abilities.resume, repr(error)
        assert_whole_or_nothing(exposed, error, StorageUnreachable)

    @pytest.mark.share(9)
    @pytest.mark.parametrize("mib", range(UPLOAD_MIB + 1))
    def test_a_line_cut_at_any_megabyte_of_a_download(self, exposed, mib):
        with exposed.honest() as storage:
            assert upload(storage) is None
        with exposed.open() as storage, struck(exposed):
            exposed.line.cut_after(mib * MIB + 1234, "down")
            assert download(storage) == content()

    @pytest.mark.share(16)
    @pytest.mark.parametrize("mib", [0, 4, 9, 16])
    @pytest.mark.parametrize("direction", ["up", "down"])
    @pytest.mark.parametrize("fault", ["stall", "vanish"])
    def test_a_peer_that_says_nothing_more(self, exposed, fault, direction: Direction, mib):
        """Stalled: nothing is taken any more, also by new connections. Vanished: all is taken and nothing comes of it."""
        if direction == "down":
            with exposed.honest() as storage:
                assert upload(storage) is None
        with exposed.open() as storage:
            strike = exposed.line.stall_after if fault == "stall" else exposed.line.vanish_after
            strike(mib * MIB + 1234, direction)
            with struck(exposed), within(exposed.give_up_seconds):
                error = (
                    upload(storage) if direction == "up" else raised(lambda: assert_same(download(storage), content()))
                )
            exposed.line.resume()
            if direction == "down":
                assert (error is None) == (fault == "vanish"), error
                assert error is None or isinstance(error, StorageUnreachable)
                assert download(storage) == content()
                return
        assert error is None or fault == "stall" or not (storage.abilities.resume and exposed.forgets_writers)
        assert_whole_or_nothing(exposed, error, StorageUnreachable)

    def test_a_short_silence_costs_nothing(self, exposed):
        with exposed.open() as storage:
            exposed.line.stall_after(5 * MIB)
            resuming = threading.Timer(0.5, exposed.line.resume)
            resuming.start()
            try:
                assert upload(storage) is None
            finally:
                resuming.cancel()
                resuming.join()
                exposed.line.resume()
        assert_whole_or_nothing(exposed, None)

    def test_the_products_own_waits_are_bounded(self, exposed):
        assert exposed.waits
        for name, seconds in exposed.waits.items():
            assert 0 < seconds <= SILENCE_SECONDS_MAX, name

    # ---- the server -----------------------------------------------------------------------------------------------------

    @pytest.mark.share(3)
    @pytest.mark.parametrize("mib", [0, 8, 16])
    def test_a_server_killed_and_started_again_during_an_upload(self, exposed, mib):
        def restart() -> None:
            exposed.stop()
            exposed.start()

        with (exposed.patient or exposed.open)() as storage:
            error = upload(storage, mib * MIB, restart)
            assert error is None or not storage.abilities.resume, repr(error)
        assert_whole_or_nothing(exposed, error, StorageUnreachable)

    def test_a_server_that_stays_away_during_an_upload(self, exposed):
        with exposed.open() as storage:
            error = upload(storage, 4 * MIB, exposed.stop)
            assert isinstance(error, StorageUnreachable)
            exposed.start()
        assert_whole_or_nothing(exposed, error, StorageUnreachable)

    def test_a_server_killed_and_started_again_during_a_download(self, exposed):
        with exposed.honest() as storage:
            assert upload(storage) is None
        with (exposed.patient or exposed.open)() as storage:
            reader = storage.open("d/object")
            try:
                for offset in range(0, len(content()) - MIB, 4 * MIB):
                    assert reader.read_at(offset, MIB) == content()[offset : offset + MIB]
                    if offset == 4 * MIB:
                        exposed.stop()
                        exposed.start()
            finally:
                reader.close()

    # ---- small objects: what makes a backup a backup --------------------------------------------------------------------

    @pytest.mark.share(8)
    @pytest.mark.parametrize("direction", ["up", "down"])
    @pytest.mark.parametrize("part", range(8))
    def test_a_manifest_whose_upload_is_cut(self, exposed, part, direction: Direction):
        data = content()[:SMALL_BYTES]
        with exposed.open() as storage:
            before = exposed.line.bytes[direction]
            storage.put("d/first", data)
            spent = exposed.line.bytes[direction] - before
            exposed.line.cut_after(max(1, spent * part // 8 + 7 * part), direction)
            error = raised(lambda: storage.put("d/object", data))
            assert error is None or not storage.abilities.resume, repr(error)
        assert_whole_or_nothing(exposed, error, StorageUnreachable, data, others=("d/first",))

    @pytest.mark.share(6)
    @pytest.mark.parametrize("cut", [1, 40, 90, 200, 500, 1000])
    def test_a_deletion_that_is_cut_can_be_repeated(self, exposed, cut):
        with exposed.honest() as storage:
            for name in ("d/first", "d/object", "d/second"):
                storage.put(name, b"x")
        with exposed.open() as storage:
            exposed.line.cut_after(cut)
            error = raised(lambda: storage.delete("d/object"))
            assert error is None or isinstance(error, StorageUnreachable)
            storage.delete("d/object")
            assert raised(lambda: storage.size("d/object")).__class__ is ObjectNotFound
        assert exposed.everything() == ["d/first", "d/second"]

    # ---- who may not any more -------------------------------------------------------------------------------------------

    @pytest.mark.share(2)
    @pytest.mark.parametrize("mib", [0, 9])
    def test_credentials_revoked_during_an_upload(self, exposed, mib):
        allow_again: list[Callable[[], object]] = []
        with (exposed.patient or exposed.open)() as storage:
            error = upload(storage, mib * MIB, lambda: allow_again.append(exposed.revoke()))
            allow_again[0]()
        assert_whole_or_nothing(exposed, error, StorageLoginFailed)


# ---- full ---------------------------------------------------------------------------------------------------------------


class FullStorage:
    """`full` is an Exposed on a file system of 12 MiB: its `everything` must hold nothing of what did not fit."""

    @pytest.fixture
    def full(self) -> Iterator[Exposed]:
        raise NotImplementedError

    @pytest.mark.parametrize("kept_mib", [0, 6])
    def test_a_disk_that_becomes_full_is_named_and_keeps_what_it_has(self, full, kept_mib):
        with full.open() as storage:
            storage.put("kept", content()[: kept_mib * MIB])
            error = upload(storage)
            assert isinstance(error, StorageFull)
            assert storage.get("kept") == content()[: kept_mib * MIB]
        assert_whole_or_nothing(full, error, StorageFull, others=("kept",))
        with full.open() as storage:
            storage.put("d/small", b"x")
            assert storage.get("d/small") == b"x"


# ---- helpers ------------------------------------------------------------------------------------------------------------


@contextmanager
def struck(exposed: Exposed) -> Iterator[None]:
    """Fail the test if nothing happened to the line in the block: a client that is cut off comes again, or is stalled."""
    line = exposed.line
    assert line is not None
    before = line.connections
    yield
    assert line.stalled or line.connections > before


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


def upload(storage: Storage, at: int = -1, act: Callable[[], object] | None = None) -> Exception | None:
    """Write `content` to `d/object`, with `act` called after `at` bytes; return what came of it."""

    def write() -> None:
        data, waiting = memoryview(content()), act
        with storage.create("d/object") as sink:
            for position in range(0, len(data), PIECE_BYTES):
                if waiting is not None and position >= at:
                    waiting()
                    waiting = None
                sink.write(data[position : position + PIECE_BYTES])

    return raised(write)


def download(storage: Storage) -> bytes:
    """Return `d/object` as a restore reads it: in ranges, one after the other."""
    reader = storage.open("d/object")
    try:
        size = reader.size_bytes
        starts = range(0, size, READ_BYTES)
        return b"".join(reader.read_at(start, min(READ_BYTES, size - start)) for start in starts)
    finally:
        reader.close()


def raised(work: Callable[[], object]) -> Exception | None:
    try:
        work()
    except Exception as error:
        return error
    return None


def assert_whole_or_nothing(
    exposed: Exposed,
    error: Exception | None,
    expected: type[StorageError] = StorageError,
    data: bytes | None = None,
    others: tuple[str, ...] = (),
) -> None:
    """`d/object` is whole if its upload succeeded; if it failed, as `expected`, no wrong byte is there, and a sweep leaves nothing."""
    data = content() if data is None else data
    with exposed.honest() as storage:
        if error is None:
            assert storage.get("d/object") == data
            if not storage.abilities.resume:  # a program that repeats by itself what we do not see may leave an upload
                storage.remove_stale(-1)
        else:
            assert isinstance(error, expected), repr(error)
            missing = raised(lambda: assert_same(storage.get("d/object"), data))
            assert missing is None or isinstance(missing, ObjectNotFound)
            # What a stalled line held back arrives when it flows again, after a sweep perhaps: the next one has it.
            wait_until(lambda: swept(storage, others, exposed), LATE_SECONDS, "a place with nothing left over")
    assert exposed.everything() == sorted((*others, *(["d/object"] if error is None else [])))


def swept(storage: Storage, others: tuple[str, ...], exposed: Exposed) -> bool:
    """Clean up as the product does; tell whether nothing but `others` is there then."""
    storage.sweep("d", others)
    storage.remove_stale(-1)
    return exposed.everything() == sorted(others)


def assert_same(found: bytes, wanted: bytes) -> None:
    assert found == wanted
