"""The client against real servers: qemu-nbd, QEMU's block layer with dirty bitmaps, nbdkit."""

import errno
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import NbdDisconnected, NbdReadFailed, NbdRefused
from engine.extents import Extent
from engine.nbd.client import Client
from engine.nbd.handshake import list_contexts
from engine.nbd.protocol import CONTEXT_ALLOCATION, STATE_DIRTY, STATE_ZERO
from engine.units import KIB, MIB
from tests.servers.images import fragmented_image, realistic_image, to_qcow2
from tests.servers.nbd import MiniVm, nbdkit, qemu_nbd
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("T11")

SIZE = 16 * MIB


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, Client]]:
    """Return the bytes of a fragmented disk and a client that reads it from a qcow2 image."""
    folder = tmp_path_factory.mktemp("fragmented")
    content = fragmented_image(folder / "a.raw", SIZE)
    image = to_qcow2(folder / "a.raw", folder / "a.qcow2")
    with qemu_nbd(image, "--read-only", image_format="qcow2") as server, Client.connect(server.socket, "vda") as client:
        yield content, client


extents_strategy = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * MIB)).map(
        lambda one: Extent(one[0], min(one[1], SIZE - one[0]))
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(extents=extents_strategy)
def test_any_extents_read_as_the_disk_has_them(fragmented: tuple[bytes, Client], extents: list[Extent]) -> None:
    content, client = fragmented
    buffer = bytearray(b"\xa5" * sum(extent.length for extent in extents))

    client.read_into(tuple(extents), memoryview(buffer))

    assert buffer == b"".join(content[extent.start : extent.end] for extent in extents)


def test_the_whole_disk_through_tcp(tmp_path: Path) -> None:
    content = realistic_image(tmp_path / "a.raw")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.listen(1)
        accepted: list[socket.socket] = []
        with qemu_nbd(tmp_path / "a.raw", "--read-only") as server:
            relay = threading.Thread(target=_relay, args=(free, server.socket, accepted))
            relay.start()
            with Client.connect(("127.0.0.1", port), "vda") as client:
                assert client.size_bytes == len(content)
                assert client.read(0, len(content)) == content
            relay.join()


def _relay(listener: socket.socket, target: str, accepted: list[socket.socket]) -> None:
    """Carry one TCP connection to a unix socket, until both sides have closed."""
    near, _ = listener.accept()
    far = socket.socket(socket.AF_UNIX)
    far.connect(target)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(1 * MIB):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    with near, far:
        back = threading.Thread(target=pump, args=(far, near))
        back.start()
        pump(near, far)
        back.join()


def test_extents_tell_zeros_and_cover_the_disk(tmp_path: Path) -> None:
    content = realistic_image(tmp_path / "a.raw", 32 * MIB)
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    with qemu_nbd(image, "--read-only", image_format="qcow2") as server:
        with Client.connect(server.socket, "vda", [CONTEXT_ALLOCATION]) as client:
            statuses = list(client.block_status(0, client.size_bytes, CONTEXT_ALLOCATION))

    assert [status.start for status in statuses] == [0] + [one.start + one.length for one in statuses[:-1]]
    assert statuses[-1].start + statuses[-1].length == len(content)
    zero_bytes = sum(status.length for status in statuses if status.flags & STATE_ZERO)
    assert zero_bytes >= 16 * MIB  # the written zeros and the hole
    for status in statuses:
        if status.flags & STATE_ZERO:
            assert not any(content[status.start : status.start + status.length])


def test_a_part_of_the_extents_starts_and_ends_where_asked(fragmented: tuple[bytes, Client], tmp_path: Path) -> None:
    content = fragmented_image(tmp_path / "a.raw", 4 * MIB)
    with qemu_nbd(tmp_path / "a.raw", "--read-only") as server:
        with Client.connect(server.socket, "vda", [CONTEXT_ALLOCATION]) as client:
            statuses = list(client.block_status(100 * KIB, 1 * MIB, CONTEXT_ALLOCATION))

    assert statuses[0].start == 100 * KIB
    assert sum(status.length for status in statuses) == 1 * MIB
    assert len(content) == 4 * MIB


@pytest.mark.feature("T2", "T7")
def test_dirty_bitmap_shows_what_was_written_and_contexts_are_listed(tmp_path: Path) -> None:
    fragmented_image(tmp_path / "a.raw", 8 * MIB)
    image = to_qcow2(tmp_path / "a.raw", tmp_path / "a.qcow2")
    with MiniVm({"vda": image}) as vm:
        vm.add_bitmap("vda", "b1")
        vm.write("vda", 1 * MIB, b"new" * 100)
        vm.write_zeroes("vda", 3 * MIB, 128 * KIB)
        with vm.backup("vda", "b1") as server:
            context = f"qemu:dirty-bitmap:{vm.frozen_bitmap(server)}"
            vm.write("vda", 6 * MIB, b"later")  # after the instant
            listed = list_contexts(server.socket, server.export)
            narrowed = list_contexts(server.socket, server.export, "qemu:dirty-bitmap:")
            with Client.connect(server.socket, server.export, [context, CONTEXT_ALLOCATION]) as client:
                dirty = [
                    (one.start, one.length)
                    for one in client.block_status(0, client.size_bytes, context)
                    if one.flags & STATE_DIRTY
                ]
                both = client.contexts
                at_the_instant = client.read(6 * MIB, 5)

    assert dirty == [(1 * MIB, 64 * KIB), (3 * MIB, 128 * KIB)]
    assert set(both) == {context, CONTEXT_ALLOCATION}
    assert {context, CONTEXT_ALLOCATION} <= set(listed)
    assert narrowed == (context,)
    assert at_the_instant != b"later"


def test_unknown_context_and_export_are_refused(tmp_path: Path) -> None:
    fragmented_image(tmp_path / "a.raw", 1 * MIB)
    with qemu_nbd(tmp_path / "a.raw", "--read-only") as server:
        with Client.connect(server.socket, "vda", ["qemu:dirty-bitmap:none"]) as client:
            assert client.contexts == ()
            with pytest.raises(NbdRefused):
                list(client.block_status(0, 1, "qemu:dirty-bitmap:none"))
        with pytest.raises(NbdRefused, match="nothing-here"):
            Client.connect(server.socket, "nothing-here")
    with pytest.raises(NbdDisconnected):
        Client.connect(server.socket, "vda")


def test_writes_zeros_and_flush_reach_the_image(tmp_path: Path) -> None:
    content = bytearray(fragmented_image(tmp_path / "a.raw", 8 * MIB))
    data = bytes(range(256)) * (5 * MIB // 256)
    pieces = (Extent(0, 64 * KIB), Extent(7 * MIB, 512 * KIB))
    with qemu_nbd(tmp_path / "a.raw", "--discard=unmap") as server, Client.connect(server.socket, "vda") as client:
        client.write(1 * MIB + 512, data)
        client.write_from(pieces, memoryview(data)[: 576 * KIB])
        client.write_zeroes(2 * MIB, 3 * MIB)
        client.write_zeroes(5 * MIB, 64 * KIB, no_hole=True)
        client.flush()

        content[1 * MIB + 512 : 1 * MIB + 512 + len(data)] = data
        content[0 : 64 * KIB] = data[: 64 * KIB]
        content[7 * MIB : 7 * MIB + 512 * KIB] = data[64 * KIB : 576 * KIB]
        content[2 * MIB : 5 * MIB + 64 * KIB] = bytes(3 * MIB + 64 * KIB)
        assert (tmp_path / "a.raw").read_bytes() == content
        assert client.read(0, len(content)) == content
        client.trim(0, 1 * MIB)
        assert len(client.read(0, 1 * MIB)) == 1 * MIB


def test_server_without_write_zeroes_gets_zeros() -> None:
    with nbdkit("memory", "4M", filters=["nozero"]) as server, Client.connect(server.socket, server.export) as client:
        client.write(0, b"\xff" * 4 * MIB)
        client.write_zeroes(1000, 3 * MIB)
        assert client.read(0, 4 * MIB) == b"\xff" * 1000 + bytes(3 * MIB) + b"\xff" * (MIB - 1000)


def test_server_without_structured_replies() -> None:
    with nbdkit("pattern", "5M", options=["--no-sr"]) as server:
        with Client.connect(server.socket, server.export, [CONTEXT_ALLOCATION]) as client:
            data = client.read(0, 5 * MIB)
            assert client.contexts == ()

    assert data == b"".join(offset.to_bytes(8, "big") for offset in range(0, 5 * MIB, 8))


def test_minimum_block_size_is_learned_and_kept_to() -> None:
    filters = ["blocksize-policy"]
    sizes = [
        "blocksize-minimum=4096",
        "blocksize-preferred=64K",
        "blocksize-maximum=300K",
        "blocksize-error-policy=error",
    ]
    with nbdkit("pattern", "5M", *sizes, filters=filters) as server:
        with Client.connect(server.socket, server.export) as client:
            assert client.block_sizes.minimum == 4096
            assert client.block_sizes.maximum == 300 * KIB
            assert len(client.read(0, 5 * MIB)) == 5 * MIB
            with pytest.raises(NbdReadFailed) as caught:
                client.read(1, 512)
    assert caught.value.facts["errno"] == str(errno.EINVAL)


def test_error_reply_is_typed_and_the_connection_lives_on(tmp_path: Path) -> None:
    trigger = tmp_path / "fail"
    trigger.touch()
    error = ["error-pread=ENOSPC", "error-pread-rate=1", f"error-pread-file={trigger}"]
    with nbdkit("pattern", "32M", *error, filters=["error"]) as server:
        with Client.connect(server.socket, server.export) as client:
            with pytest.raises(NbdReadFailed) as caught:
                client.read(0, 8 * MIB)
            trigger.unlink()
            data = client.read(8 * MIB, 16)

    assert caught.value.reason == "NBD_REQUEST_FAILED"
    assert caught.value.facts["operation"] == "read"
    assert caught.value.facts["errno"] == str(errno.ENOSPC)
    assert data == (8 * MIB).to_bytes(8, "big") + (8 * MIB + 8).to_bytes(8, "big")


def test_write_error_is_typed(tmp_path: Path) -> None:
    error = ["error-pwrite=EIO", "error-pwrite-rate=1"]
    with nbdkit("memory", "4M", *error, filters=["error"]) as server:
        with Client.connect(server.socket, server.export) as client, pytest.raises(NbdReadFailed) as caught:
            client.write(0, bytes(3 * MIB))
    assert (caught.value.facts["operation"], caught.value.facts["errno"]) == ("write", str(errno.EIO))


def test_flush_that_the_server_cannot_do_is_refused() -> None:
    with nbdkit("eval", "get_size=echo 1M", "pread=exit 1") as server:
        with Client.connect(server.socket, server.export) as client, pytest.raises(NbdRefused):
            client.flush()


def test_beyond_the_end_is_refused_before_anything_is_sent(fragmented: tuple[bytes, Client]) -> None:
    content, client = fragmented
    for start, length in ((SIZE, 1), (SIZE - 1, 2), (-1, 2)):
        with pytest.raises(NbdReadFailed):
            client.read(start, length)
    with pytest.raises(ValueError, match="differ"):
        client.read_into((Extent(0, 10),), memoryview(bytearray(11)))
    assert client.read(SIZE - 4096, 4096) == content[-4096:]


def test_silent_server_is_given_up() -> None:
    with nbdkit("pattern", "1M", "delay-read=60", filters=["delay"], options=["--threads=1"]) as server:
        with Client.connect(server.socket, server.export, silence_seconds=0.2) as client:
            with pytest.raises(NbdDisconnected, match="silent"):
                client.read(0, 4096)
            with pytest.raises(NbdDisconnected):  # the answer may still come: never take it for another one
                client.read(0, 4096)
        server.child.kill()


def test_interrupt_ends_a_blocked_read_at_once() -> None:
    failures: list[Exception] = []
    with nbdkit("pattern", "1M", "delay-read=60", filters=["delay"]) as server:
        with Client.connect(server.socket, server.export) as client:

            def read() -> None:
                try:
                    client.read(0, 4096)
                except NbdDisconnected as error:
                    failures.append(error)

            reader = threading.Thread(target=read)
            reader.start()
            wait_until(lambda: client._exchange._pending, 5, "a request in flight")
            client.interrupt()
            reader.join(5)
            assert not reader.is_alive()
        server.child.kill()
    assert "interrupted" in str(failures[0])


def test_server_killed_while_reading(tmp_path: Path) -> None:
    with nbdkit("pattern", "64M", "delay-read=60", filters=["delay"]) as server:
        with Client.connect(server.socket, server.export) as client:
            killer = threading.Thread(target=server.child.kill)
            killer.start()
            with pytest.raises(NbdDisconnected):
                client.read(0, 8 * MIB)
            killer.join()


def test_closing_twice_and_closing_a_dead_one_is_harmless() -> None:
    with nbdkit("memory", "1M") as server:
        client = Client.connect(server.socket, server.export)
        client.interrupt()
        client.close()
        client.close()
        with pytest.raises(NbdDisconnected):
            client.read(0, 1)
