"""An engine dies in the middle of a backup: another one goes on, and if that dies too, the job ends with the truth."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.units import MIB
from tests.e2e.stress import FAILED, WARNED, StressWorld
from tests.engine.rig import digest
from tests.servers.guest import BlankDomain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-engine")]

# From here on the backup lies whole on the storage.
WHOLE = ("backup_manifest", "committed", "checkpoints_dropped")
# From here on the agent was asked whether the backup may be committed, and starts no other engine.
ASKED = ("lease_held", "disk_manifest")
BEFORE = ("repository", "prepared", "intent", "begun", "noted", "segment", "stored", "job_ended")


@pytest.mark.feature("C11")
@pytest.mark.feature("C12")
@pytest.mark.feature("N15")
@pytest.mark.share(4)
@pytest.mark.parametrize("step", [*BEFORE, *ASKED, *WHOLE])
async def test_an_engine_killed_anywhere_leaves_the_truth_and_a_working_server(
    world: StressWorld, tmp_path: Path, blank_domain: Callable[..., BlankDomain], step: str
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    world.kill_at(step)
    job_id = await world.back_up(subject.server_id, subject.storage_id)
    job = await world.finish(job_id)
    world.kill_at("")

    backups = [one.backup_id for one in await world.list_backups(subject.server_id)]
    if step in WHOLE:
        assert job.state == WARNED, job
        assert backups == [job.backup_id]
        assert job.result.backup.backup_id == job.backup_id
        await world.prove_restore(subject, job.backup_id)
    elif step in ASKED:
        assert (job.state, job.failure.reason) == (FAILED, "ENGINE_CRASHED"), job
        assert backups == []
    else:
        assert job.state == WARNED, job
        assert any("an engine died while it made this backup" in warning for warning in job.warnings), job
        assert backups == [job.backup_id]
        await world.prove_restore(subject, job.backup_id)
    await world.prove_well(subject)


@pytest.mark.feature("C11")
@pytest.mark.feature("C12")
@pytest.mark.feature("N15")
async def test_engines_that_die_one_after_the_other_end_the_job(
    world: StressWorld, tmp_path: Path, blank_domain: Callable[..., BlankDomain]
) -> None:
    subject = await world.admit(blank_domain, tmp_path)
    world.kill_at("noted", "prepared", "noted")
    job = await world.finish(await world.back_up(subject.server_id, subject.storage_id))
    world.kill_at()

    assert (job.state, job.failure.reason) == (FAILED, "ENGINE_CRASHED"), job
    assert await world.list_backups(subject.server_id) == []
    assert not list(world.folder.rglob("*.unfinished"))
    await world.prove_well(subject)


@pytest.mark.feature("C12")
async def test_a_killed_engine_is_followed_by_one_at_the_same_instant(
    world: StressWorld, tmp_path: Path, blank_domain: Callable[..., BlankDomain]
) -> None:
    """Killed from outside with the data half-way, and the guest writes before the next engine reads on."""
    subject = await world.admit(blank_domain, tmp_path)
    expected = digest(subject.disk.path, "qcow2")
    job_id = await world.hold(subject)
    (pid,) = world.agent.engines()
    subject.domain.write("vda", 0, 2 * MIB, 77)
    os.kill(pid, signal.SIGKILL)
    world.pipe.cut()
    world.pipe.resume()
    job = await world.finish(job_id)

    assert job.state == WARNED, job
    assert any("at the same instant" in warning for warning in job.warnings), job
    assert job.attempt == 1
    await world.prove_restore(subject, job.backup_id, expected)
    await world.prove_well(subject)
