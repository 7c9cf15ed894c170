"""Disks behind real exports: their extents, their bytes, and an end from outside."""

import itertools
import socket
import threading
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import EngineError, NbdDisconnected, NbdRefused
from engine.extents import Extent, merge
from engine.nbd.client import STATUS_REQUEST_BYTES
from engine.source.disk import Disk, Reader
from engine.source.images import create_image
from engine.source.nbd_disk import NbdDisk
from engine.units import GIB, KIB, MIB, TIB
from tests.servers.images import realistic_image, to_qcow2, write_pattern
from tests.servers.nbd import MiniVm, nbdkit, qemu_nbd
from tests.waiting import wait_until


def read_all(reader: Reader, extents: list[Extent], size: int) -> bytes:
    """Return the disk that the extents describe, as a restore would build it."""
    disk = bytearray(size)
    for extent in extents:
        if not extent.zero:
            reader.read_into((extent,), memoryview(disk)[extent.start : extent.end])
    return bytes(disk)


@pytest.mark.feature("T1", "T11", "P11")
def test_full_covers_the_disk_and_zeros_are_not_read(tmp_path: Path) -> None:
    content = realistic_image(tmp_path / "a.raw", 16 * MIB)
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    with qemu_nbd(image, "--read-only", image_format="qcow2") as server:
        disk: Disk = NbdDisk(server.socket, server.export)
        extents = list(disk.extents())
        reader = disk.connect()
        copy = read_all(reader, extents, disk.size_bytes)
        reader.close()

    assert disk.size_bytes == len(content)
    assert extents[0].start == 0
    assert all(before.end == after.start for before, after in itertools.pairwise(extents))
    assert extents[-1].end == disk.size_bytes
    assert sum(extent.length for extent in extents if extent.zero) >= 8 * MIB
    assert copy == content


@pytest.mark.feature("T2", "T7")
def test_blocks_that_lie_far_apart_are_found_each(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    create_image(str(image), "qcow2", 2 * GIB)
    starts = [
        number * 24 * MIB for number in range(50)
    ]  # more than are asked about at once, and too far apart to be one question
    with MiniVm({"vda": image}) as vm:
        vm.add_bitmap("vda", "b1")
        for number, start in enumerate(starts):
            if number % 3:
                vm.write("vda", start, b"changed")
            else:
                vm.write_zeroes("vda", start, 64 * KIB)
        with vm.backup("vda", "b1", checkpoint="b2") as server:
            found = list(NbdDisk(server.socket, server.export, vm.frozen_bitmap(server)).extents())

    assert found == [Extent(start, 64 * KIB, zero=number % 3 == 0) for number, start in enumerate(starts)]


@pytest.mark.feature("T2", "T7")
def test_incremental_has_what_changed_and_marks_zeros(tmp_path: Path) -> None:
    content = bytearray(realistic_image(tmp_path / "a.raw", 16 * MIB))
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    with MiniVm({"vda": image}) as vm:
        vm.add_bitmap("vda", "b1")
        vm.write("vda", 100, b"changed")
        vm.write("vda", 4 * MIB, b"\x55" * (192 * KIB))
        vm.write_zeroes("vda", 4 * MIB + 64 * KIB, 64 * KIB)
        vm.write("vda", 16 * MIB - 3, b"end")
        with vm.backup("vda", "b1", checkpoint="b2") as server:
            vm.write("vda", 8 * MIB, b"after the instant")
            vm.write("vda", 100, b"CHANGED")
            disk = NbdDisk(server.socket, server.export, vm.frozen_bitmap(server))
            extents = list(disk.extents())
            reader = disk.connect()
            copy = bytearray(content)
            for extent in extents:
                part = memoryview(copy)[extent.start : extent.end]
                if extent.zero:
                    part[:] = bytes(extent.length)
                else:
                    reader.read_into((extent,), part)
            reader.close()
        with vm.backup("vda", "b2") as server:
            later = list(merge(NbdDisk(server.socket, server.export, vm.frozen_bitmap(server)).extents()))

    content[100:107] = b"changed"
    content[4 * MIB : 4 * MIB + 192 * KIB] = b"\x55" * (64 * KIB) + bytes(64 * KIB) + b"\x55" * (64 * KIB)
    content[-3:] = b"end"
    assert extents == [
        Extent(0, 64 * KIB),
        Extent(4 * MIB, 64 * KIB),
        Extent(4 * MIB + 64 * KIB, 64 * KIB, zero=True),
        Extent(4 * MIB + 128 * KIB, 64 * KIB),
        Extent(16 * MIB - 64 * KIB, 64 * KIB),
    ]
    assert copy == content
    assert later == [Extent(0, 64 * KIB), Extent(8 * MIB, 64 * KIB)]


def test_nothing_changed_is_nothing(tmp_path: Path) -> None:
    realistic_image(tmp_path / "a.raw", 8 * MIB)
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    with MiniVm({"vda": image}) as vm:
        vm.add_bitmap("vda", "b1")
        with vm.backup("vda", "b1") as server:
            assert list(NbdDisk(server.socket, server.export, vm.frozen_bitmap(server)).extents()) == []


def test_bitmap_of_a_disk_that_does_not_end_on_its_granularity(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(b"\x11" * (1 * MIB + 512))
    with MiniVm({"vda": image}, image_format="raw") as vm:
        vm.add_bitmap("vda", "b1", persistent=False)
        vm.write("vda", 1 * MIB + 100, b"tail")
        with vm.backup("vda", "b1") as server:
            disk = NbdDisk(server.socket, server.export, vm.frozen_bitmap(server))
            extents = list(merge(disk.extents()))
            reader = disk.connect()
            data = bytearray(512)
            reader.read_into(tuple(extents), memoryview(data))
            reader.close()
    assert extents == [Extent(1 * MIB, 512)]
    assert data[100:104] == b"tail"


@pytest.mark.feature("P10")
def test_huge_disk_is_described_window_by_window(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    create_image(str(image), "qcow2", 4 * TIB)
    written = [Extent(start, 64 * KIB) for start in (0, 5 * GIB - 64 * KIB, 3 * TIB, 4 * TIB - 64 * KIB)]
    for extent in written:
        write_pattern(image, extent.start, extent.length, 1)
    with qemu_nbd(image, "--read-only", image_format="qcow2") as server:
        disk = NbdDisk(server.socket, server.export)
        total, found = 0, []
        tracemalloc.start()
        try:
            for extent in disk.extents():
                assert extent.start == total
                assert extent.length <= STATUS_REQUEST_BYTES
                total = extent.end
                if not extent.zero:
                    found.append(extent)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert total == 4 * TIB
    assert found == written
    assert peak < 1 * MIB


def test_server_without_extents_is_data_everywhere() -> None:
    with nbdkit("memory", "8M", filters=["noextents"]) as server:
        assert list(merge(NbdDisk(server.socket, server.export).extents())) == [Extent(0, 8 * MIB)]
    with nbdkit("memory", "8M", options=["--no-sr"]) as server:
        assert list(NbdDisk(server.socket, server.export).extents()) == [Extent(0, 8 * MIB)]


def test_missing_bitmap_is_refused() -> None:
    with nbdkit("memory", "8M") as server, pytest.raises(NbdRefused, match="qemu:dirty-bitmap:backup-vda"):
        NbdDisk(server.socket, server.export, "backup-vda")


def test_leaving_the_extents_early_closes_their_connections() -> None:
    with nbdkit("memory", "8M") as server:
        disk = NbdDisk(server.socket, server.export)
        extents = disk.extents()
        next(extents)
        extents.close()  # type: ignore[attr-defined]  # a generator
        assert all(connection._closed for connection in list(disk._live))


@pytest.mark.feature("C8")
def test_interrupt_ends_all_readers_and_lets_no_new_one_in() -> None:
    errors: list[EngineError] = []
    with nbdkit("pattern", "8M", "delay-read=60", filters=["delay"]) as server:
        disk = NbdDisk(server.socket, server.export)
        readers = [disk.connect() for _ in range(4)]

        def read(reader: Reader) -> None:
            try:
                reader.read_into((Extent(0, 4096),), memoryview(bytearray(4096)))
            except EngineError as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(reader._exchange._pending for reader in readers), 5, "four blocked reads")
        disk.interrupt()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        with pytest.raises(NbdDisconnected):
            disk.connect()
        with pytest.raises(NbdDisconnected):
            next(iter(disk.extents()))
        for reader in readers:
            reader.close()
        server.child.kill()
    assert [error.reason for error in errors] == ["NBD_DISCONNECTED"] * 4


@pytest.mark.feature("N15")
def test_an_interrupted_disk_is_settled_when_no_handshake_is_under_way(tmp_path: Path) -> None:
    """A server that is stopped in the middle of one may hang, and with it the guest."""
    image = tmp_path / "a.raw"
    create_image(str(image), "raw", MIB)
    with qemu_nbd(image, "--read-only", image_format="raw") as server:
        disk = NbdDisk(server.socket, server.export)
    silent = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(silent)
        listener.listen()
        disk._address = silent
        failed: list[EngineError] = []

        def connect() -> None:
            try:
                disk.connect()
            except NbdDisconnected as error:
                failed.append(error)

        caller = threading.Thread(target=connect)
        caller.start()
        peer, _ = listener.accept()
        with peer:
            assert not disk.settle(0.05)
            disk.interrupt()
            assert disk.settle(10)
            assert peer.recv(1) == b""  # the peer has heard of it
        caller.join()
        assert failed
        with pytest.raises(NbdDisconnected):
            disk.connect()
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):  # nobody called again
            listener.accept()
