"""Words that come too late: the controller has made up its mind meanwhile, and what comes then changes nothing that is settled."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stress import CANCELLED, COMPLETED, FAILED, OFFLINE, RUNNING, StressWorld, until
from tests.servers.guest import BlankDomain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-late")]

Domains = Callable[..., BlankDomain]


def outcomes(world: StressWorld, job_id: str) -> dict[str, str]:
    """Return what the controller made of each of a job's events, by kind; read beside it, as no call tells it."""
    with sqlite3.connect(f"file:{world.controller.state / 'controller.db'}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT kind, outcome FROM agent_event WHERE job_id = ? ORDER BY sequence", (job_id,))
        return dict(rows.fetchall())


@pytest.mark.feature("X16")
@pytest.mark.feature("X9")
async def test_a_command_that_arrives_when_its_job_is_given_up_changes_nothing(
    tmp_path: Path, libvirtd: Any, blank_domain: Domains
) -> None:
    async with StressWorld(tmp_path / "w", libvirtd, command_accept_seconds=2) as world:
        subject = await world.admit(blank_domain, tmp_path)
        world.pipe.stall()
        world.link.stall()
        job_id = await world.back_up(subject.server_id, subject.storage_id)
        given_up = await world.finish(job_id)
        world.link.resume()
        await world.dial_now()
        await until(lambda: "finished" in outcomes(world, job_id), "the late result")
        world.pipe.resume()

        assert (given_up.state, given_up.failure.reason) == (FAILED, "COMMAND_NOT_ACCEPTED"), given_up
        assert outcomes(world, job_id) == {"accepted": "stale generation", "finished": "stale generation"}
        assert await world.job(job_id) == given_up
        assert await world.list_backups(subject.server_id) == []
        await world.prove_well(subject)


@pytest.mark.feature("X8")
@pytest.mark.feature("X9")
async def test_a_job_that_takes_too_long_is_stopped_and_the_next_one_works(
    tmp_path: Path, libvirtd: Any, blank_domain: Domains
) -> None:
    async with StressWorld(tmp_path / "w", libvirtd) as world:
        subject = await world.admit(blank_domain, tmp_path)
        job_id = await world.hold(subject)
        await world.set(max_single_job_hours=1e-4)
        await until(lambda: "job stale, cancelling" in world.controller.log.read_text(), "the clock")
        await world.dial_now()
        await until(lambda: f"cancelling job_id={job_id}" in world.agent.log, "the cancel to arrive")
        world.pipe.resume()
        job = await world.finish(job_id)
        await world.set(max_single_job_hours=24)

        assert (job.state, job.failure.reason) == (FAILED, "JOB_STALE"), job
        assert await world.list_backups(subject.server_id) == []
        await world.prove_well(subject)


@pytest.mark.feature("M7")
@pytest.mark.feature("X16")
async def test_a_cancel_waits_for_a_hypervisor_that_cannot_be_reached(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    world.link.refuse()
    world.link.cut()
    await world.hypervisor_is(OFFLINE)

    asked = await world.cancel(job_id)
    world.link.refuse(on=False)
    await world.dial_now()
    await until(lambda: f"cancelling job_id={job_id}" in world.agent.log, "the cancel to arrive")
    world.pipe.resume()
    job = await world.finish(job_id)

    assert (asked.state, asked.cancel_requested) == (RUNNING, True)
    assert (job.state, job.failure.reason) == (CANCELLED, "CANCELLED"), job
    assert await world.list_backups(subject.server_id) == []
    await world.prove_well(subject)


@pytest.mark.feature("M7")
@pytest.mark.feature("X9")
async def test_a_cancel_that_comes_after_the_work_was_done_undoes_nothing(
    world: StressWorld, tmp_path: Path, blank_domain: Domains
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    job_id = await world.hold(subject)
    world.link.refuse()
    world.link.cut()
    await world.hypervisor_is(OFFLINE)
    world.pipe.resume()
    await until(lambda: not list(world.agent.engines()), "the engine's end")

    await world.cancel(job_id)
    world.link.refuse(on=False)
    await world.dial_now()
    job = await world.finish(job_id)

    assert job.state == COMPLETED, job
    assert [one.backup_id for one in await world.list_backups(subject.server_id)] == [job.backup_id]
    await world.prove_well(subject)
