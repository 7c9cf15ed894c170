"""Errors, delays and cuts between QEMU and the pipeline, made by nbdkit's filters in front of the job's own socket."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.nbd.connection import Connection
from engine.source import watch
from engine.spec import Settings
from engine.units import MIB
from tests.engine.aftermath import At, assert_host_is_clean, assert_next_is_good, assert_only
from tests.engine.rig import Rig, reason, result
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.nbd import Server, nbdkit

DISK_BYTES = 32 * MIB


@pytest.fixture
def domain(tmp_path: Path, blank_domain: Any) -> BlankDomain:
    made: BlankDomain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(DISK_BYTES)])
    for number in range(DISK_BYTES // MIB):
        made.write("vda", number * MIB, MIB, number + 1)
    return made


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Any, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(watch, "GONE_SECONDS", 0.5)
    rig = Rig.make(tmp_path, libvirtd.uri)
    rig.settings = Settings(compression_level=0, workers=4)
    return rig


@contextlib.contextmanager
def in_front(scratch: Path, *parameters: str, filters: tuple[str, ...]) -> Iterator[dict[str, Server]]:
    """Put nbdkit with `filters` before each backup job's socket, as soon as somebody connects to it; give those started."""
    original, servers, lock = Connection.open, dict[str, Server](), threading.Lock()
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def open_there(address: str, *arguments: Any, **options: Any) -> Connection:
            with lock:
                if Path(address).is_relative_to(scratch) and address not in servers:
                    front = nbdkit("nbd", f"socket={address}", "export=vda", *parameters, filters=filters)
                    servers[address] = stack.enter_context(front)
            there = servers[address].socket if address in servers else address
            return original(there, *arguments, **options)

        patch.setattr(Connection, "open", open_there)
        yield servers


def fail_with(rig: Rig, domain: BlankDomain, report: At | None, *parameters: str, filters: tuple[str, ...]) -> str:
    """Run a full that must fail and leave nothing; return why it did."""
    first = rig.back_up(domain.uuid)
    with in_front(rig.folder / "scratch", *parameters, filters=filters) as servers:
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid, type="full"))
        assert servers, "nbdkit was never in between"
    assert outcome.state == "failed"
    assert_host_is_clean(rig, domain)
    assert_only(rig.folder / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})
    assert len(domain.handle.listAllCheckpoints()) == 1
    return reason(outcome)


@pytest.mark.feature("T11")
@pytest.mark.feature("N15")
@pytest.mark.parametrize(
    ("after_bytes", "workers"),
    [(0, 4), (DISK_BYTES // 4, 4), (DISK_BYTES - 12 * MIB, 1)],
    ids=["first", "middle", "last"],
)
def test_a_read_error_ends_the_backup_and_leaves_nothing(
    rig: Rig, domain: BlankDomain, tmp_path: Path, after_bytes: int, workers: int
) -> None:
    """From that moment on every read of all workers fails; what is told as done is some frames behind what was read."""
    trigger = tmp_path / "fail"
    if not after_bytes:
        trigger.touch()
    report = At("read", trigger.touch, after_bytes)
    rig.settings = Settings(compression_level=0, workers=workers, upload_limit=32 * MIB if after_bytes else 0)

    why = fail_with(
        rig, domain, report, "error-pread=EIO", "error-pread-rate=100%", f"error-file={trigger}", filters=("error",)
    )

    assert why == "NBD_REQUEST_FAILED"


@pytest.mark.feature("T11")
def test_an_error_of_the_block_status_ends_the_backup(rig: Rig, domain: BlankDomain) -> None:
    why = fail_with(rig, domain, None, "error-extents=EIO", "error-extents-rate=100%", filters=("error",))

    assert why == "NBD_REQUEST_FAILED"


@pytest.mark.feature("T11")
def test_a_cut_while_four_workers_read(rig: Rig, domain: BlankDomain) -> None:
    """The server in between dies; QEMU and the domain go on."""
    first = rig.back_up(domain.uuid)
    with in_front(rig.folder / "scratch", filters=()) as servers:

        def cut() -> None:
            for server in list(servers.values()):
                server.child.kill()

        outcome = rig.run(report=At("read", cut, 8 * MIB), backup=rig.backup_job(domain.uuid, type="full"))

    assert (outcome.state, reason(outcome)) == ("failed", "NBD_DISCONNECTED")
    assert_host_is_clean(rig, domain)
    assert_only(rig.folder / "storage", domain.uuid, first)
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})


@pytest.mark.feature("T11")
def test_delays_are_survived(rig: Rig, domain: BlankDomain) -> None:
    with in_front(rig.folder / "scratch", "rdelay=50ms", "delay-extents=50ms", filters=("delay",)) as servers:
        made = result(rig.run(backup=rig.backup_job(domain.uuid)))
        assert servers

    assert made["disks"][0]["type"] == "full"
    assert_host_is_clean(rig, domain)
    assert_next_is_good(rig, domain, {"vda": ("incremental", "")})
