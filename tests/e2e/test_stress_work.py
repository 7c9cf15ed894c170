"""Several hands at one server: what is refused, what waits, what is the same twice, what is cancelled and what is foreign."""

import asyncio
import hashlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.errors import CallRefused, translated
from clients.gen.backupmanager.v1 import hypervisor_service_pb2, storage_service_pb2
from tests.e2e.stress import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, StressWorld, until
from tests.e2e.world import FULL, HYPERVISOR
from tests.servers.guest import BlankDomain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-work")]

SETTINGS = {"heartbeat_seconds": 5}  # of this file's world: an agent that is stopped for some seconds keeps its session

Domains = Callable[..., BlankDomain]
SLOW = 2 << 20  # bytes a second: what is left of a held backup then takes longer than a cancel


@pytest.mark.feature("X4")
@pytest.mark.feature("X5")
async def test_one_server_is_busy_and_another_one_waits(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    first, second = [await world.admit(blank_domain, _folder(tmp_path, name)) for name in ("a", "b")]
    running = await world.hold(first)
    waiting = await world.back_up(second.server_id, second.storage_id)

    refusals = []
    for subject in (first, second):
        with pytest.raises(CallRefused) as refused, translated():
            await world.back_up(subject.server_id, subject.storage_id)
        refusals.append((refused.value.reason, refused.value.facts["job_id"]))
    assert refusals == [("VM_BUSY", running), ("VM_BUSY", waiting)]
    assert ((await world.job(running)).state, (await world.job(waiting)).state) == (RUNNING, QUEUED)
    assert (await world.busy_job_id(first), await world.busy_job_id(second)) == (running, waiting)
    world.pipe.resume()

    assert [(await world.finish(one)).state for one in (running, waiting)] == [COMPLETED, COMPLETED]
    for subject in (first, second):
        await world.prove_well(subject)


@pytest.mark.feature("N7")
async def test_the_same_request_is_one_job(world: StressWorld, tmp_path: Path, blank_domain: Domains) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    options = {"request_id": str(uuid.uuid4())}

    same = await asyncio.gather(*(world.back_up(subject.server_id, subject.storage_id, **options) for _ in range(8)))
    ended = await world.finish(same[0])
    later = await world.back_up(subject.server_id, subject.storage_id, **options)
    with pytest.raises(CallRefused) as refused, translated():
        await world.back_up(subject.server_id, subject.storage_id, type=FULL, **options)

    assert {*same, later} == {ended.job_id}
    assert ended.state == COMPLETED
    assert (refused.value.reason, refused.value.facts["job_id"]) == ("REQUEST_ID_REUSED", ended.job_id)
    assert len(await world.list_backups(subject.server_id)) == 1
    await world.prove_well(subject)


# ---- cancel --------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("M7")
async def test_a_queued_job_is_cancelled_at_once(world: StressWorld, tmp_path: Path, blank_domain: Domains) -> None:
    first, second = [await world.admit(blank_domain, _folder(tmp_path, name)) for name in ("a", "b")]
    running = await world.hold(first)
    waiting = await world.back_up(second.server_id, second.storage_id)

    cancelled = await world.cancel(waiting)

    assert (cancelled.state, cancelled.failure.reason) == (CANCELLED, "CANCELLED")
    assert await world.busy_job_id(second) == ""
    world.pipe.resume()
    assert (await world.finish(running)).state == COMPLETED
    assert (await world.job(waiting)).state == CANCELLED
    await world.prove_well(first)
    await world.prove_well(second)


@pytest.mark.feature("M7")
async def test_a_backup_is_cancelled_while_it_connects(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    dialed = world.pipe.connections
    world.pipe.stall()
    job_id = await world.back_up(subject.server_id, subject.storage_id)
    await until(lambda: world.pipe.connections > dialed, "the engine to dial the storage")

    await world.cancel(job_id)
    job = await world.finish(job_id)
    world.pipe.resume()

    assert (job.state, job.failure.reason) == (CANCELLED, "CANCELLED"), job
    assert await world.list_backups(subject.server_id) == []
    await world.prove_well(subject)


@pytest.mark.feature("M7")
async def test_a_backup_is_cancelled_in_the_middle_of_its_data(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    storage_id = await world.add_sftp("slow", path=tmp_path / "vault", port=world.pipe.port, read_bytes_per_second=SLOW)
    subject = await world.admit(blank_domain, tmp_path, storage_id)
    job_id = await world.hold(subject)

    asked = await world.cancel(job_id)
    world.pipe.resume()
    job = await world.finish(job_id)

    assert asked.state == RUNNING
    assert asked.cancel_requested
    assert (job.state, job.failure.reason) == (CANCELLED, "CANCELLED"), job
    assert await world.list_backups(subject.server_id) == []
    await world.prove_well(subject)


@pytest.mark.feature("M7")
async def test_a_backup_is_cancelled_before_its_commit(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    os.kill(world.agent.pid, signal.SIGSTOP)
    try:
        world.pipe.resume()
        await until(lambda: world.said(job_id, "commit"), "the question for the lease")
        await world.cancel(job_id)
    finally:
        os.kill(world.agent.pid, signal.SIGCONT)
    job = await world.finish(job_id)

    assert (job.state, job.failure.reason) == (CANCELLED, "CANCELLED"), job
    assert await world.list_backups(subject.server_id) == []
    await world.prove_well(subject)


# ---- who is who ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("S29")
async def test_a_place_of_another_repository_is_refused_and_left_alone(
    world: StressWorld, tmp_path: Path, libvirtd: Any, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    first = await world.good_backup(subject.server_id, subject.storage_id)
    before = contents(subject.path)

    second_record = await world.add_sftp("second-record", path=subject.path)
    here = [await world.finish(await world.back_up(subject.server_id, second_record))]
    async with StressWorld(tmp_path / "other", libvirtd) as other:
        other.sshd = world.sshd  # two installations, one place
        server_id = await other.register(subject.domain)
        theirs = await other.add_sftp("theirs", path=subject.path)
        test = storage_service_pb2.TestStorageRequest(storage_id=theirs, hypervisor_id=HYPERVISOR)
        there = [
            await other.finish(await other.back_up(server_id, theirs)),
            await other.finish((await other.storages.TestStorage(test)).job_id),
        ]
        assert await other.list_backups() == []

    assert {(job.state, job.failure.reason) for job in here + there} == {(FAILED, "REPOSITORY_FOREIGN")}
    assert contents(subject.path) == before
    await world.prove_restore(subject, first.backup_id)
    await world.prove_well(subject)


@pytest.mark.feature("N3")
async def test_a_hypervisor_banned_in_the_middle_is_heard_again_when_the_ban_is_lifted(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    refusals = world.agent.log.count("no session reason=PERMISSION_DENIED")

    ban = hypervisor_service_pb2.BanHypervisorRequest(hypervisor_id=HYPERVISOR)
    await world.hypervisors.BanHypervisor(ban)
    await until(lambda: world.agent.log.count("no session reason=PERMISSION_DENIED") > refusals, "the session's end")
    with pytest.raises(CallRefused) as refused, translated():
        await world.back_up(subject.server_id, subject.storage_id)
    world.pipe.resume()
    await until(lambda: not list(world.agent.engines()), "the engine's end")
    assert (await world.job(job_id)).state == RUNNING
    await world.hypervisors.UnbanHypervisor(hypervisor_service_pb2.UnbanHypervisorRequest(hypervisor_id=HYPERVISOR))
    await world.dial_now()

    assert refused.value.reason == "HYPERVISOR_BANNED"
    assert (await world.finish(job_id)).state == COMPLETED
    assert len(await world.list_backups(subject.server_id)) == 1
    await world.prove_well(subject)


@pytest.mark.feature("N3")
async def test_a_hypervisor_enrolled_anew_in_the_middle_keeps_its_work(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    before = await world.hypervisor()

    enrolled = world.agent.enroll(world.controller.api, await world.enrollment_token(renew=True), "--renew")
    assert enrolled.returncode == 0, enrolled.stderr
    world.lead_through_link(world.agent)
    world.link.cut()
    world.pipe.resume()

    assert (await world.finish(job_id)).state == COMPLETED
    after = await world.hypervisor()
    assert after.hypervisor_id == before.hypervisor_id
    assert after.certificate_expire_time.ToDatetime() > before.certificate_expire_time.ToDatetime()
    await world.prove_well(subject)


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder
