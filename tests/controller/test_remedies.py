"""Refusals that a person can do something about say what (E2-E5): every state that stands in the way, and every end by the clock."""

import inspect

import grpc
import pytest

from controller import errors
from controller.security.status import STATUS
from engine.errors import BackupManagerError

# Nothing to be done beyond what the sentence itself says: an end, or a customer who may not.
SAY_IT_ALL = {
    "ACCESS_LEVEL_DENIED", "BATCH_ENDED", "COOLDOWN_ACTIVE", "JOB_ENDED", "NOTHING_TO_RETRY", "PORTAL_REFUSED", "PURGE_ENDED",
    "RETENTION_CHANGED", "SELF_SERVICE_OFF", "SHUTTING_DOWN",
}  # fmt: skip
STANDING = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


def kinds() -> list[type[BackupManagerError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, errors.ControllerError) and hasattr(kind, "reason")]


@pytest.mark.feature("E2", "E3", "E4", "E5")
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_what_stands_in_the_way_comes_with_a_remedy(kind: type[BackupManagerError]) -> None:
    if STATUS.get(kind.reason) in STANDING and kind.reason not in SAY_IT_ALL:
        assert kind.remedy, kind.reason


@pytest.mark.feature("E5")
def test_a_busy_server_names_the_job_and_an_offline_agent_its_last_contact() -> None:
    busy = errors.ServerBusy(server_id="s", job_id="j9")
    assert "j9" in busy.message
    assert busy.facts["job_id"] == "j9"
    away = errors.HypervisorUnreachable(hypervisor_id="h", last_contact_time="2026-11-23T10:00:00+00:00")
    assert "2026-11-23T10:00" in away.message
    assert "bm-agent" in away.message
