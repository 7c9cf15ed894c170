"""Health of storages (H1-H4): what each hypervisor found last, and what that means together.

    job of type health or test ends ──► storage_check (storage, hypervisor) ──► rules/health.py ──► storage_health
    tick (cycle/health.py) ─────────────────────────────────────────────────────────┘ └─ changed: an event, and a line of the log

Health is told and stops nothing. Sync functions, inside `Database.run`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import peewee

from controller import happenings, system_log
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import find_row, find_where, put_row, statement
from controller.rules import health as rules
from controller.rules.health import Check, Intervals, Summary

Row, CheckRow = models.StorageHealth, models.StorageCheck
TYPES = frozenset({"health", "test"})  # of jobs whose end says something of a storage


@dataclass(frozen=True, slots=True)
class Health:
    """How a storage is. `failure` is the JSON form of the newest one that still holds; sizes are 0 where nobody can tell."""

    state: str = "unknown"
    detail: str = "it was not checked yet"
    change_time: datetime | None = None
    check_time: datetime | None = None
    hypervisor_id: str = ""
    failure: dict[str, Any] | None = None
    healthy_count: int = 0
    unhealthy_count: int = 0
    total_bytes: int = 0
    free_bytes: int = 0
    measure_time: datetime | None = None
    measure_hypervisor_id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What one hypervisor found last, with its name."""

    hypervisor_id: str
    hypervisor_name: str
    state: str
    check_time: datetime | None
    failure: dict[str, Any] | None
    failure_count: int
    latency_microseconds: int
    total_bytes: int
    free_bytes: int
    job_id: str


NEVER = Health()
_CHECK = (CheckRow.hypervisor_id, CheckRow.state, CheckRow.check_time, CheckRow.try_time, CheckRow.fail_time)


# ---- looking ------------------------------------------------------------------------------------------------------------


def of_storage(storage_id: str) -> Health:
    """Return how a storage is; unknown for one that was never checked, or is none."""
    return of_storages([storage_id]).get(storage_id, NEVER)


def of_storages(storage_ids: Iterable[str] | None = None) -> dict[str, Health]:
    """Return how storages are, all of them by default; one that was never looked at is not among them."""
    query = Row.select() if storage_ids is None else Row.select().where(Row.storage_id.in_(list(storage_ids)))
    return {row.storage_id: _health(row) for row in query}


def list_checks(storage_id: str, *, after: tuple[int, str] | None = None, limit: int = 101) -> list[Found]:
    """Return what each hypervisor found, the failing ones first, those after (rank, hypervisor_id) of `rank_of`."""
    hypervisor = models.Hypervisor
    rank = peewee.Case(None, [((CheckRow.state == "unhealthy"), 0)], 1)
    query = CheckRow.select(CheckRow, hypervisor.name).join(
        hypervisor, peewee.JOIN.LEFT_OUTER, on=(hypervisor.hypervisor_id == CheckRow.hypervisor_id)
    )
    query = query.where(CheckRow.storage_id == storage_id)
    if after:
        number, hypervisor_id = after
        query = query.where((rank > number) | ((rank == number) & (CheckRow.hypervisor_id > hypervisor_id)))
    rows: Any = query.order_by(rank, CheckRow.hypervisor_id).limit(limit).dicts()
    return [_found(row) for row in rows]


def rank_of(found: Found) -> int:
    """Return where `list_checks` puts it: 0 for a failing one, else 1."""
    return 0 if found.state == "unhealthy" else 1


def checks_of(storage_id: str) -> dict[str, Check]:
    """Return what each hypervisor found last, as the rules see it."""
    rows = find_where(CheckRow, "storage_id = ?", storage_id)
    return {row.hypervisor_id: _check(row) for row in rows}


def users() -> dict[str, list[str]]:
    """Return the hypervisors whose enabled schedule uses each storage, by storage."""
    row = models.Schedule
    rows: Any = row.select(row.storage_id, row.hypervisor_id).where(row.enabled & row.delete_time.is_null()).tuples()
    found: dict[str, list[str]] = {}
    for storage_id, hypervisor_id in rows:
        found.setdefault(storage_id, []).append(hypervisor_id)
    return found


def storages() -> list[tuple[str, bool]]:
    """Return the ids of all storages, and whether each is enabled."""
    row = models.Storage
    rows: Any = row.select(row.storage_id, row.enabled).order_by(row.storage_id).tuples()
    return list(rows)


def all_checks() -> dict[str, dict[str, Check]]:
    """Return what each hypervisor found last of each storage, as the rules see it, by one query."""
    rows: Any = CheckRow.select(CheckRow.storage_id, *_CHECK).tuples()
    found: dict[str, dict[str, Check]] = {}
    for storage_id, *values in rows:
        found.setdefault(storage_id, {})[values[0]] = Check(*values)
    return found


def last_job(storage_id: str, hypervisor_id: str) -> str:
    """Return the job of a hypervisor's last look at a storage, "" for none."""
    row = CheckRow.get_or_none(_pair(storage_id, hypervisor_id))
    return "" if row is None else str(row.job_id)


# ---- keeping ------------------------------------------------------------------------------------------------------------


def begin(storage_id: str, hypervisor_id: str, job_id: str, now: datetime) -> None:
    """Remember that a hypervisor looks at a storage, so that nobody else is asked meanwhile."""
    CheckRow.insert(
        storage_id=storage_id, hypervisor_id=hypervisor_id, state="", try_time=now, job_id=job_id
    ).on_conflict(
        conflict_target=[CheckRow.storage_id, CheckRow.hypervisor_id],
        update={CheckRow.try_time: now, CheckRow.job_id: job_id},
    ).execute()


_STATE_OF = "SELECT state FROM storage_check WHERE storage_id = ? AND hypervisor_id = ?"
_STILL_HEALTHY = """
    UPDATE storage_health SET check_time = ?, hypervisor_id = ? WHERE storage_id = ? AND state = 'healthy'
    RETURNING storage_id
"""


def note(
    job_id: str,
    storage_id: str,
    hypervisor_id: str,
    state: str,
    failure: Mapping[str, Any] | None,
    result: Mapping[str, Any] | None,
    now: datetime,
) -> None:
    """Take in the end of a job that looked at a storage; `failure` and `result` are their JSON forms."""
    verdict = rules.verdict(state, (failure or {}).get("reason", ""))
    if verdict is None or find_row(models.Storage.storage_id, storage_id) is None:
        return
    change: dict[str, Any]
    if verdict == "healthy":
        change = {"failure": None, "failure_count": 0, "fail_time": None, **_told((result or {}).get("health", {}))}
    else:
        before = CheckRow.get_or_none(_pair(storage_id, hypervisor_id) & (CheckRow.state == "unhealthy"))
        change = {
            "failure": dict(failure or {}),
            "failure_count": before.failure_count + 1 if before else 1,
            "fail_time": before.fail_time if before else now,
        }
    change |= {"state": verdict, "check_time": now, "job_id": job_id}
    key = {"storage_id": storage_id, "hypervisor_id": hypervisor_id}
    repeated = verdict == "healthy" and statement(_STATE_OF, *key.values()) == [("healthy",)]
    put_row(CheckRow, key, {"try_time": now}, change)
    _measure(storage_id, hypervisor_id, change, now)
    if repeated and statement(_STILL_HEALTHY, to_microseconds(now), hypervisor_id, storage_id):
        return  # what one more of the same finds changes no verdict, and reading a thousand would take longer than the check
    checks = checks_of(storage_id)
    # Who has just looked is online, and so was whoever looked before; the next tick knows better.
    conclude(storage_id, checks, users=checks, online=checks, enabled=True, intervals=Intervals(), now=now)


def conclude(
    storage_id: str,
    checks: Mapping[str, Check],
    *,
    users: Collection[str],
    online: Collection[str],
    enabled: bool,
    intervals: Intervals,
    now: datetime,
) -> None:
    """Keep what the checks of a storage mean now; a change is recorded as an event and in the system log."""
    summary = rules.summarize(
        list(checks.values()), enabled=enabled, users=users, online=online, intervals=intervals, now=now
    )
    before = find_row(Row.storage_id, storage_id)
    if before is not None and _same(before, summary, checks):
        return
    changed = before is None or before.state != summary.state
    failure = _failure_of(storage_id, summary.culprit)
    values = {
        "state": summary.state,
        "detail": summary.detail,
        "change_time": before.change_time if before is not None and not changed else now,
        "check_time": max((one.check_time for one in checks.values() if one.check_time), default=None),
        "hypervisor_id": summary.newest or (before.hypervisor_id if before else ""),
        "failure": failure,
        "healthy_count": summary.healthy_count,
        "unhealthy_count": summary.unhealthy_count,
    }
    put_row(Row, {"storage_id": storage_id}, {}, values)
    if changed and (before is not None or summary.state != "unknown"):
        _tell(storage_id, before.state if before else "unknown", summary, failure, now)


def forget_storage(storage_id: str) -> None:
    """Drop what was found of a storage that is deleted."""
    Row.delete().where(Row.storage_id == storage_id).execute()
    CheckRow.delete().where(CheckRow.storage_id == storage_id).execute()


# ---- inside -------------------------------------------------------------------------------------------------------------


def _check(row: models.StorageCheck) -> Check:
    return Check(row.hypervisor_id, row.state, row.check_time, row.try_time, row.fail_time)


def _tell(storage_id: str, before: str, summary: Summary, failure: dict[str, Any] | None, now: datetime) -> None:
    links = {"storage_id": storage_id, "hypervisor_id": summary.culprit or summary.newest}
    reason = (failure or {}).get("reason", "")
    body = {"state": summary.state, "before": before, "detail": summary.detail, "reason": reason}
    happenings.record("storage.health_changed", now, **links, body=body)
    cause = f": {failure['message']}" if failure and failure.get("message") else f": {summary.detail}"
    level = {"unhealthy": "error", "degraded": "warning"}.get(summary.state, "info")
    system_log.write(level, "health", f"storage is {summary.state}, was {before}{cause}", now, **links)  # type: ignore[arg-type]  # of the dict


def _same(before: models.StorageHealth, summary: Summary, checks: Mapping[str, Check]) -> bool:
    newest = max((one.check_time for one in checks.values() if one.check_time), default=None)
    counts = (before.healthy_count, before.unhealthy_count) == (summary.healthy_count, summary.unhealthy_count)
    return (before.state, before.detail, before.check_time) == (summary.state, summary.detail, newest) and counts


def _measure(storage_id: str, hypervisor_id: str, told: Mapping[str, Any], now: datetime) -> None:
    if not told.get("total_bytes"):
        return
    values = {
        "total_bytes": told["total_bytes"],
        "free_bytes": told["free_bytes"],
        "measure_time": now,
        "measure_hypervisor_id": hypervisor_id,
    }
    first = {"state": "unknown", "change_time": now}
    Row.insert(storage_id=storage_id, **first, **values).on_conflict(
        conflict_target=[Row.storage_id], update=values
    ).execute()


def _told(result: Mapping[str, Any]) -> dict[str, int]:
    """Return what a health result says in numbers; its JSON form has 64-bit numbers as text and spans as `1.5s`."""
    if not result:
        return {}
    room = result.get("room", {})
    seconds = float(str(result.get("latency", "0s")).removesuffix("s") or 0)
    return {
        "latency_microseconds": int(seconds * 1_000_000),
        "total_bytes": max(0, int(room.get("total_bytes", 0))),
        "free_bytes": max(0, int(room.get("free_bytes", 0))),
    }


def _failure_of(storage_id: str, hypervisor_id: str) -> dict[str, Any] | None:
    if not hypervisor_id:
        return None
    row = CheckRow.get_or_none(_pair(storage_id, hypervisor_id))
    return None if row is None else row.failure


def _pair(storage_id: str, hypervisor_id: str) -> Any:
    return (CheckRow.storage_id == storage_id) & (CheckRow.hypervisor_id == hypervisor_id)


def _health(row: models.StorageHealth) -> Health:
    return Health(**{name: getattr(row, name) for name in Health.__dataclass_fields__})


def _found(row: Mapping[str, Any]) -> Found:
    values = {name: row[name] for name in Found.__dataclass_fields__ if name in row}
    return Found(**{**values, "hypervisor_name": row["name"] or ""})
