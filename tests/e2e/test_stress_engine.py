"""An engine dies in the middle of a backup: the product ends the job with the truth, and goes on as if nothing had been."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.failpoint import BACKUP_STEPS
from tests.e2e.stress import FAILED, WARNED, StressWorld
from tests.servers.guest import BlankDomain

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("stress-engine")]

# From here on the backup lies whole on the storage; the second manifest of a server with one disk is backup.json.
WHOLE = ("disk_manifest:2", "committed", "checkpoints_dropped")


@pytest.mark.feature("C11")
@pytest.mark.feature("N15")
@pytest.mark.parametrize("step", [*BACKUP_STEPS, "disk_manifest:2"])
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
    else:
        assert (job.state, job.failure.reason) == (FAILED, "ENGINE_CRASHED"), job
        assert backups == []
    await world.prove_well(subject)
