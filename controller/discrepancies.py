"""What the storages and the catalog do not agree on: backups that are gone or damaged, and such as nobody here had made (N10).

    reading of a storage (results.py) ──► backup rows: missing, damaged, adopted ──► counts, by server and storage ──► overview, diagnose

The rows say it themselves, by indexes that hold only those: nothing here costs anything where nothing is wrong. What is gone or damaged
is told as long as it is so; what was taken in is told for ADOPTED_SPAN. Sync functions, inside `Database.run`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.db.statements import statement
from engine.ids import first_id

ADOPTED_SPAN = timedelta(days=7)
_ADOPTED_LOOK = 1000  # of the newest that were taken in; after a lost controller's return that is every backup there is


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """What was found of one server on one storage that nobody had ordered."""

    server_id: str
    storage_id: str
    missing_count: int
    damaged_count: int
    adopted_count: int


@dataclass(frozen=True, slots=True)
class Flaws:
    """How many backups are gone, and how many cannot be restored."""

    missing: int
    damaged: int


# Each names the condition of its index, and the index's first column: SQLite takes another one otherwise, and reads all backups.
_FLAWED = "FROM backup WHERE state <> 'available' AND delete_time IS NULL AND state IN ('missing', 'damaged')"
_ADOPTED = "FROM backup WHERE adopt_job_id <> '' AND adopt_job_id >= ? AND delete_time IS NULL"
_STATES = f"SELECT state, COUNT(*) {_FLAWED} {{}} GROUP BY state"
_WORST = f"""
    SELECT server_id, storage_id, SUM(CASE WHEN state = 'missing' THEN 1 ELSE 0 END),
        SUM(CASE WHEN state = 'damaged' THEN 1 ELSE 0 END)
    {_FLAWED} {{}} GROUP BY server_id, storage_id ORDER BY COUNT(*) DESC, server_id LIMIT ?
"""
_NEWEST_ADOPTED = f"SELECT server_id, storage_id {_ADOPTED} {{}} ORDER BY adopt_job_id DESC LIMIT {_ADOPTED_LOOK}"


def flaws(storage_id: str = "") -> Flaws:
    """Return how many backups are missing or damaged, on one storage or on all."""
    which, values = ("AND storage_id = ?", (storage_id,)) if storage_id else ("", ())
    found = {str(state): int(count) for state, count in statement(_STATES.format(which), *values)}
    return Flaws(found.get("missing", 0), found.get("damaged", 0))


def adopted_count(now: datetime) -> int:
    """Return how many backups were taken in lately."""
    ((count,),) = statement(f"SELECT COUNT(*) {_ADOPTED}", _since(now))
    return int(count)


def worst(limit: int, now: datetime) -> list[Discrepancy]:
    """Return what differs, where most is gone or damaged first, then where something was taken in last."""
    flawed = statement(_WORST.format(""), limit)
    return _merged(flawed, statement(_NEWEST_ADOPTED.format(""), _since(now)))[:limit]


def of_server(server_id: str, now: datetime) -> list[Discrepancy]:
    """Return what differs of one server, by storage."""
    flawed = statement(_WORST.format("AND server_id = ?"), server_id, 100)
    return _merged(flawed, statement(_NEWEST_ADOPTED.format("AND server_id = ?"), _since(now), server_id))


def _merged(flawed: Iterable[tuple[str, str, int, int]], adopted: Iterable[tuple[str, str]]) -> list[Discrepancy]:
    added = Counter(adopted)
    found = [
        Discrepancy(server_id, storage_id, int(missing), int(damaged), added.pop((server_id, storage_id), 0))
        for server_id, storage_id, missing, damaged in flawed
    ]
    return found + [Discrepancy(*pair, 0, 0, count) for pair, count in added.items()]


def _since(now: datetime) -> str:
    """Return the id that jobs of the last days sort from."""
    return first_id(now - ADOPTED_SPAN)
