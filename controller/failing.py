"""Servers whose last backups failed, and how many in a row (M3): kept at the end of each backup job.

Sync functions, inside `Database.run`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.db import models
from controller.db.statements import find_row
from controller.rules.failing import meaning

Row = models.ServerFailure


@dataclass(frozen=True, slots=True)
class ServerFailure:
    """A server that fails. `failure` is the JSON form of the last one."""

    server_id: str
    failure_count: int
    first_time: datetime
    last_time: datetime
    job_id: str
    storage_id: str
    hypervisor_id: str
    failure: dict[str, Any] | None


def of_server(server_id: str) -> ServerFailure | None:
    """Return how a server fails, None where its last backup ended well."""
    row = find_row(Row.server_id, server_id)
    return None if row is None else _failure(row)


def worst(limit: int) -> list[ServerFailure]:
    """Return the servers that failed most often in a row, the latest first among equals."""
    query = Row.select().order_by(Row.failure_count.desc(), Row.last_time.desc()).limit(limit)
    return [_failure(row) for row in query]


def note(
    job_id: str,
    server_id: str,
    storage_id: str,
    hypervisor_id: str,
    state: str,
    failure: dict[str, Any] | None,
    now: datetime,
) -> None:
    """Take in the end of a backup job; `failure` is its JSON form."""
    match meaning(state, (failure or {}).get("reason", "")):
        case "success":
            Row.delete().where(Row.server_id == server_id).execute()
        case "failure":
            last = {
                "last_time": now,
                "job_id": job_id,
                "storage_id": storage_id,
                "hypervisor_id": hypervisor_id,
                "failure": failure,
            }
            Row.insert(server_id=server_id, failure_count=1, first_time=now, **last).on_conflict(
                conflict_target=[Row.server_id], update={**last, "failure_count": Row.failure_count + 1}
            ).execute()


def _failure(row: models.ServerFailure) -> ServerFailure:
    return ServerFailure(**{name: getattr(row, name) for name in ServerFailure.__dataclass_fields__})
