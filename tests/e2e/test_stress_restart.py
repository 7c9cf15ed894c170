"""Agent, controller and the wire between them go away in the middle of a backup: the work goes on and is counted once."""

import os
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.errors import CallRefused, translated
from clients.gen.backupmanager.v1 import job_pb2, job_service_pb2
from tests.e2e.stress import COMPLETED, OFFLINE, ONLINE, RUNNING, StressWorld, Subject, until
from tests.e2e.world import FULL
from tests.servers.guest import BlankDomain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-restart")]

Domains = Callable[..., BlankDomain]


async def recorded_once(world: StressWorld, subject: Subject, job_id: str) -> None:
    """The job ends without a warning, and the catalog has its backup and no other; then all is well."""
    job = await world.finish(job_id)
    assert job.state == COMPLETED, job
    assert [one.backup_id for one in await world.list_backups(subject.server_id)] == [job.backup_id]
    await world.prove_well(subject)


@pytest.mark.feature("S24")
async def test_an_agent_killed_in_the_middle_finds_its_engine_again(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    engines = list(world.agent.engines())

    world.agent.kill()
    assert list(world.agent.engines()) == engines
    world.agent.start()
    await until(lambda: f"adopted an engine job_id={job_id} pid={engines[0]}" in world.agent.log, "the adoption")
    world.pipe.resume()

    await recorded_once(world, subject, job_id)


@pytest.mark.feature("S24")
async def test_an_engine_that_ends_while_no_agent_lives_is_counted_by_the_next_one(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    os.kill(world.agent.pid, signal.SIGSTOP)
    world.pipe.resume()
    await until(lambda: world.said(job_id, "commit"), "the question for the lease")
    world.pipe.stall()
    os.kill(world.agent.pid, signal.SIGCONT)
    control = world.operation(job_id) / "control.jsonl"
    await until(lambda: '"allow":true' in control.read_text(), "the agent's answer")

    world.agent.kill()
    world.pipe.resume()
    await until(lambda: not list(world.agent.engines()), "the engine's end")
    assert (await world.job(job_id)).state == RUNNING
    world.agent.start()

    await recorded_once(world, subject, job_id)


@pytest.mark.feature("N7")
@pytest.mark.feature("M6")
@pytest.mark.parametrize("kill", [False, True], ids=["stop", "kill"])
async def test_a_controller_that_restarts_in_the_middle_counts_the_backup_once(
    world: StressWorld, tmp_path: Path, blank_domain: Domains, kill: bool
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    request_id = str(uuid.uuid4())
    job_id = await world.hold(subject, request_id=request_id)
    watch = world.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id))
    seen: job_pb2.Job = (await watch.read()).job  # type: ignore[attr-defined]  # of the stub's read; it is a response

    await world.restart_controller(kill=kill)
    again = await world.back_up(subject.server_id, subject.storage_id, request_id=request_id)
    with pytest.raises(CallRefused) as refused, translated():
        await world.back_up(subject.server_id, subject.storage_id, request_id=request_id, type=FULL)
    resumed = world.jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id, cursor=seen.version))
    world.pipe.resume()
    versions, states = [seen.version], []
    async for response in resumed:
        versions.append(response.job.version)
        states.append(response.job.state)

    assert (again, refused.value.reason, refused.value.facts["job_id"]) == (job_id, "REQUEST_ID_REUSED", job_id)
    assert sorted(set(versions)) == versions
    assert states[-1] == COMPLETED
    await recorded_once(world, subject, job_id)


@pytest.mark.feature("X16")
@pytest.mark.parametrize("broken", ["cut", "half-open"])
async def test_work_goes_on_while_the_stream_is_broken(
    world: StressWorld, tmp_path: Path, blank_domain: Domains, broken: str
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)

    if broken == "cut":
        world.link.refuse()
        world.link.cut()
    else:
        world.link.stall()
    await world.hypervisor_is(OFFLINE)
    world.pipe.resume()
    await until(lambda: not list(world.agent.engines()), "the engine's end")
    assert (await world.job(job_id)).state == RUNNING
    world.link.refuse(on=False)
    world.link.resume()
    await world.dial_now()
    await world.hypervisor_is(ONLINE)

    await recorded_once(world, subject, job_id)


@pytest.mark.feature("N9")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "at work"])
async def test_a_hypervisor_set_back_in_time_loses_and_doubles_nothing(
    world: StressWorld, tmp_path: Path, blank_domain: Domains, busy: bool
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    agent, old = world.agent, tmp_path / "old-state"
    job_id = await world.hold(subject) if busy else ""
    agent.stop()
    shutil.copytree(agent.state_folder, old)
    agent.start()
    world.pipe.resume()
    first = await world.finish(job_id or await world.back_up(subject.server_id, subject.storage_id))
    assert first.state == COMPLETED, first

    agent.stop()
    shutil.rmtree(agent.state_folder)
    shutil.copytree(old, agent.state_folder)
    noticed = agent.log.count("a new journal begins")
    agent.start()
    await until(lambda: agent.log.count("a new journal begins") > noticed, "the agent to notice")
    await world.hypervisor_is(ONLINE)

    assert await world.job(first.job_id) == first
    await recorded_once(world, subject, first.job_id)
    listed = await world.jobs.ListJobs(job_service_pb2.ListJobsRequest(server_id=subject.server_id))
    assert {job.state for job in listed.jobs} == {COMPLETED}
    assert sum(job.type == job_pb2.JOB_TYPE_BACKUP for job in listed.jobs) == 2
