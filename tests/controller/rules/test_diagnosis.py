"""Why a server is not backed up: every cause by itself is found, named and comes with what to do; all is looked at, in order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import errors_pb2
from controller.rules.diagnosis import (
    AgentFacts,
    BatchFacts,
    DiscrepancyFacts,
    Facts,
    FailureFacts,
    ScheduleFacts,
    ServerFacts,
    StorageFacts,
    summary,
    walk,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SOON = NOW + timedelta(hours=9)
KNOWN = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
STEPS = [
    "server", "errors", "catalog", "schedule", "interval", "window", "pause", "caps", "batch", "busy", "storage", "health", "level", "lock",
    "agent", "clock",
]  # fmt: skip
SERVER = ServerFacts("web", place="kvm1", last_backup_time=NOW - timedelta(days=1))
SCHEDULE = ScheduleFacts("s1", True, 24, SOON, SOON, True, "all day", "all", "UTC")
GOOD = Facts(
    server=SERVER,
    schedule=SCHEDULE,
    storage=StorageFacts("nas", True, False, "healthy"),
    agent=AgentFacts("online", NOW),
)
pytestmark = pytest.mark.feature("E1")


def with_(part: str, **values: Any) -> Facts:
    return replace(GOOD, **{part: replace(getattr(GOOD, part), **values)})


def test_all_is_looked_at_in_order_and_a_healthy_server_only_waits_for_its_time() -> None:
    found = walk(GOOD, NOW)
    assert [one.step for one in found] == STEPS
    assert [one.step for one in found if one.state != "ok"] == ["interval"]
    assert summary(found, SOON) == "it runs every 24 h, next due 2026-11-23 21:00 UTC"
    due = walk(with_("schedule", due_time=NOW), NOW)
    assert summary(due, NOW) == "nothing stands in the way; the next backup begins 2026-11-23 12:00 UTC"


LOCKED = {"lock_reason": "suspended"}


@pytest.mark.parametrize(
    ("facts", "step", "state", "reason", "says"),
    [
        (with_("server", deleted=True), "server", "blocks", "SERVER_DELETED", "deleted"),
        (with_("server", place=""), "server", "blocks", "", "no hypervisor"),
        (with_("server", rivals=("kvm2",)), "server", "blocks", "SERVER_CONFLICT", "kvm1, kvm2"),
        (with_("server", commissioned=False), "server", "blocks", "", "service"),
        (with_("server", last_backup_time=None), "server", "warning", "", "no usable backup"),
        (replace(GOOD, schedule=None), "schedule", "blocks", "", "no schedule"),
        (with_("schedule", enabled=False), "schedule", "blocks", "", "disabled"),
        (with_("schedule", interval_hours=0), "interval", "blocks", "", "by hand"),
        (with_("schedule", due_time=NOW - timedelta(hours=1)), "interval", "warning", "", "overdue"),
        (with_("schedule", due_time=NOW - timedelta(hours=1)), "batch", "warning", "", "no batch was made"),
        (with_("schedule", next_time=None, open_now=False), "window", "blocks", "", "no hour"),
        (with_("schedule", open_now=False), "window", "waits", "", "again 2026-11-23 21:00"),
        (replace(GOOD, paused=True), "pause", "blocks", "DISPATCH_PAUSED", "paused"),
        (replace(GOOD, batches_max=2, batch_count=2), "caps", "waits", "", "2 of at most 2"),
        (replace(GOOD, batch=BatchFacts("b1", "deferred", "the window is closed")), "batch", "waits", "", "closed"),
        (with_("server", busy_job_id="j1", busy_what="running restore job"), "busy", "waits", "VM_BUSY", "restore job j1"),
        (with_("storage", enabled=False), "storage", "blocks", "STORAGE_DISABLED", "nas is disabled"),
        (with_("storage", read_only=True), "storage", "blocks", "STORAGE_READ_ONLY", "read-only"),
        (with_("storage", health="unhealthy", health_message="no route"), "health", "warning", "", "no route"),
        (with_("storage", free_share=0.02), "health", "warning", "", "2% of its room"),
        (with_("server", level_scheduled=False, level="manual_only"), "level", "blocks", "ACCESS_LEVEL_DENIED", "manual only"),
        (with_("server", **LOCKED), "lock", "blocks", "VM_LOCKED", "suspended"),
        (with_("server", **LOCKED, lock_expire_time=SOON), "lock", "waits", "VM_LOCKED", "until 2026-11-23 21:00"),
        (with_("agent", state="offline"), "agent", "blocks", "HYPERVISOR_UNREACHABLE", "2026-11-23 12:00"),
        (with_("agent", state="banned"), "agent", "blocks", "HYPERVISOR_BANNED", "banned"),
        (with_("agent", domain_known=False), "agent", "blocks", "DOMAIN_NOT_FOUND", "domain"),
        (with_("agent", clock_wrong=True, clock_off_seconds=400), "clock", "blocks", "CLOCK_SKEW", "400 s"),
    ],
)  # fmt: skip
def test_each_cause_is_found_with_what_to_do(facts: Facts, step: str, state: str, reason: str, says: str) -> None:
    found = walk(facts, NOW)
    (one,) = [finding for finding in found if finding.step == step]
    assert (one.state, one.reason) == (state, reason)
    assert says in one.sentence
    if state == "blocks":
        assert one.remedy, "who is blocked is told what to do"
        assert summary(found, None) == one.sentence, "the first that blocks is the answer"
    assert {finding.reason for finding in found} - {""} <= KNOWN


@pytest.mark.feature("N10")
def test_what_a_storage_did_not_have_is_told_with_where_to_look() -> None:
    lost = DiscrepancyFacts("nas", missing=2, damaged=1)
    found = DiscrepancyFacts("vault", adopted=3)
    (one,) = [one for one in walk(replace(GOOD, discrepancies=(lost, found)), NOW) if one.step == "catalog"]
    assert one.state == "warning"
    assert one.sentence == (
        "of its backups on storage nas: 2 gone, 1 damaged; of its backups on storage vault: 3 found there and taken in"
    )
    assert one.remedy == "See which: bmctl backup list --server web --state missing --state damaged"
    assert summary(walk(replace(GOOD, discrepancies=(lost,)), NOW), SOON).startswith("it runs every"), (
        "it stops nothing"
    )


def test_errors_name_step_cause_and_job() -> None:
    failure = FailureFacts(3, "j9", "STORAGE_FULL", "the storage is full", "write", NOW - timedelta(minutes=5))
    one = walk(replace(GOOD, failure=failure), NOW)[1]
    assert one.sentence == "its last 3 backups in a row failed in step write, 5 min ago: the storage is full"
    assert "j9" in one.remedy
    assert (one.reason, dict(one.facts)) == ("STORAGE_FULL", {"job_id": "j9"})


def test_a_lock_that_is_over_and_a_disabled_health_are_nothing() -> None:
    assert (
        next(one for one in walk(with_("server", **LOCKED, lock_expire_time=NOW), NOW) if one.step == "lock").state
        == "ok"
    )
    assert next(one for one in walk(with_("storage", health="unknown"), NOW) if one.step == "health").state == "ok"
