"""The storage, the domain or the bytes themselves go wrong under the whole product: the job tells the truth, the next one is good."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.gen.backupmanager.v1 import job_pb2
from engine.format import documents
from engine.units import MIB
from tests.e2e.stress import COMPLETED, FAILED, StressWorld, Subject, ended_well, until
from tests.e2e.world import FULL, INCREMENTAL, assert_host_is_clean, folders_on_storage
from tests.engine.rig import digest
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.small_disk import small_disk

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-data")]

Domains = Callable[..., BlankDomain]
LARGE_BYTES = 48 * MIB  # more than an engine reads ahead of a storage that stands still


def large_disk(folder: Path) -> DiskFile:
    """Make a disk that is full of random data."""
    raw, disk = folder / "vda.raw", DiskFile("vda", folder / "vda.qcow2")
    raw.write_bytes(os.urandom(LARGE_BYTES))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk.path], check=True)
    raw.unlink()
    return disk


async def admit_large(world: StressWorld, blank_domain: Domains, folder: Path) -> Subject:
    """Make a server whose disk is full of random data, and its storage."""
    disk = large_disk(folder)
    domain = blank_domain([disk])
    server_id, path = await world.register(domain), folder / "vault"
    storage_id = await world.add_sftp(domain.name, path=path, port=world.pipe.port)
    return Subject(domain, disk, server_id, storage_id, path)


def why(job: job_pb2.Job) -> list[tuple[int, str]]:
    """Return the type of each disk's part in a backup, and why it is not an incremental."""
    return [(one.type, one.fallback_reason) for one in job.result.backup.disks]


@pytest.mark.feature("C12")
async def test_a_storage_server_that_dies_and_comes_back_is_waited_for(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await admit_large(world, blank_domain, tmp_path)
    job_id = await world.hold(subject)
    await asyncio.to_thread(world.sshd.stop)
    connections = world.pipe.connections
    try:
        world.pipe.resume()
        await until(lambda: world.pipe.connections > connections, "the engine to try again")
    finally:
        await asyncio.to_thread(world.sshd.start)
    made = await world.finish(job_id)

    assert ended_well(made), made
    assert why(made) == [(FULL, "first")]
    assert_host_is_clean(world, subject.domain)
    assert folders_on_storage(subject.path) == [made.backup_id]
    await world.prove_well(subject)


@pytest.mark.feature("N15")
async def test_a_server_stopped_in_the_middle_of_its_backup(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await admit_large(world, blank_domain, tmp_path)
    await world.good_backup(subject.server_id, subject.storage_id)
    job_id = await world.hold(subject, type=FULL)
    await asyncio.to_thread(subject.domain.handle.destroy)
    world.pipe.resume()

    failed = await world.finish(job_id)
    subject.domain.handle.create()

    assert (failed.state, failed.failure.reason) == (FAILED, "DOMAIN_GONE"), failed
    after = await world.prove_well(subject)
    assert why(after) == [(INCREMENTAL, "")]


@pytest.mark.feature("N15")
async def test_libvirtd_restarts_in_the_middle_of_a_backup(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await admit_large(world, blank_domain, tmp_path)
    job_id = await world.hold(subject)
    await asyncio.to_thread(world.libvirtd.restart)
    world.pipe.resume()

    job = await world.finish(job_id)

    assert job.state == COMPLETED, job
    after = await world.prove_well(subject)
    assert why(after) == [(INCREMENTAL, "")]


@pytest.mark.feature("N15")
async def test_a_storage_that_fills_up_keeps_what_it_had(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    with small_disk(tmp_path / "vault", LARGE_BYTES + 24 * MIB):
        subject = await admit_large(world, blank_domain, tmp_path)
        storage = subject.storage_id
        first, expected = await world.good_backup(subject.server_id, storage), digest(subject.disk.path, "qcow2")

        failed = await world.finish(await world.back_up(subject.server_id, storage, type=FULL))

        assert (failed.state, failed.failure.reason) == (FAILED, "STORAGE_FULL"), failed
        await world.prove_clean(subject)
        await world.prove_restore(subject, first.backup_id, expected)
        after = await world.prove_well(subject)
        assert why(after) == [(INCREMENTAL, "")]


@pytest.mark.feature("T26")
async def test_a_killed_qemu_costs_one_full_that_says_why(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    await world.good_backup(subject.server_id, subject.storage_id)
    subject.domain.handle.destroy()
    subject.domain.handle.create()
    os.kill(world.libvirtd.qemu_pid(subject.domain.name), signal.SIGKILL)
    await until(lambda: not subject.domain.handle.isActive(), "libvirt to notice")
    subject.domain.handle.create()

    assert why(await world.prove_well(subject)) == [(FULL, "bitmap_inconsistent")]
    assert why(await world.prove_well(subject)) == [(INCREMENTAL, "")]


@pytest.mark.feature("M15")
@pytest.mark.feature("C2")
async def test_damage_and_a_replayed_manifest_are_refused_with_the_server_untouched(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    made = await world.good_backup(subject.server_id, subject.storage_id)
    folder = subject.path / "servers" / subject.server_id / made.backup_id
    before, started = digest(subject.disk.path, "qcow2"), subject.domain.handle.ID()

    with swapped(folder / "vda" / "0000.data", lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:]):
        verified = await world.finish(await world.verify(made.backup_id))
        assert (verified.state, verified.failure.reason) == (FAILED, "VERIFY_FAILED"), verified
        assert [one.frame for one in verified.result.verify.damaged] == [0]
    with swapped(folder / "vda" / "0000.data", lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]):
        refused = await world.finish(await world.restore(made.backup_id))
        assert (refused.state, refused.failure.reason) == (FAILED, "SEGMENT_CORRUPT"), refused
    with swapped(folder / "backup.json", unsealed):
        refused = await world.finish(await world.restore(made.backup_id))
        assert (refused.state, refused.failure.reason) == (FAILED, "MANIFEST_CORRUPT"), refused

    assert (digest(subject.disk.path, "qcow2"), subject.domain.handle.ID()) == (before, started)
    # The verification has left its mark: nobody builds on what was found damaged, though the bytes are back.
    assert why(await world.prove_well(subject)) == [(FULL, "chain_broken")]


class swapped:  # noqa: N801 -- reads like contextlib.suppress
    """Let a file on the storage be another one for the block."""

    def __init__(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        self._path, self._change, self._data = path, change, path.read_bytes()

    def __enter__(self) -> None:
        self._path.write_bytes(self._change(self._data))

    def __exit__(self, *_exception: object) -> None:
        self._path.write_bytes(self._data)


def unsealed(data: bytes) -> bytes:
    """Return a backup's manifest as somebody without the key can write it: plain, and with a checksum that fits."""
    values = documents.unwrap(data, "backup", "backup.json").values
    sealed = {"clear": {"domain_xml": "<domain/>", "nvram": "", "disk_map": {}}}
    kind = {"kind": "backup", "version": documents.VERSION}
    body = documents.to_json({**kind, **values, "key_id": "", "key_check": "", "sealed": sealed})
    return documents.wrap(body, None)
