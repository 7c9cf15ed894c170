"""What must be proven of a storage before it is changed in a way that could lose backups from sight (S0, S25).

    encryption   no backup in the catalog, and ── nothing was ever written there
                                              └─ or: all of it was read lately, by a hypervisor, and nothing lies there unseen
    place        no backup in the catalog, or ── a look at the new place found this storage's own repository there

The catalog alone proves nothing: a lost result, or a database that was set back, leaves backups that nobody has heard of. What
is not known is refused, with the remedy. Sync functions, inside `Database.run`.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from controller import installation
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import statement
from controller.errors import EncryptionUnproven, StorageImmutable
from controller.rules import storage_types

PROOF_TIME_MAX = timedelta(hours=1)  # a reading, or a look, is proof for so long
PROBE = "probe"  # in the spec of a look at another place: the config that was looked at
WRITERS = ("backup", "test", "bundle")  # jobs that may make the repository
_WELL = ("completed", "completed_with_warnings")


def note_use(storage_id: str, job_type: str, now: datetime) -> None:
    """Remember that a job which may write to a storage was sent out, if it is the first one."""
    if job_type in WRITERS:
        first = "UPDATE storage SET use_time = ? WHERE storage_id = ? AND use_time IS NULL"
        statement(first, to_microseconds(now), storage_id)


def check_encryption(row: models.Storage, hypervisor_id: str, now: datetime) -> None:
    """Raise EncryptionUnproven unless no backup can lie on a storage that the catalog does not know.

    `hypervisor_id` says whose backups it is about, "" for everybody's. The catalog itself was asked before.
    """
    if (
        row.use_time is None and installation.get().epoch == 1
    ):  # in a later one the database was set back: it may be wrong
        return
    if hypervisor_id and not _ever_wrote(row.storage_id, hypervisor_id):
        return
    for place in _places(row, hypervisor_id):
        problem = _problem(row, place, hypervisor_id, now)
        if problem:
            raise EncryptionUnproven(storage_id=row.storage_id, problem=problem)


def check_place(row: models.Storage, config: Mapping[str, Any], makers: Collection[str], now: datetime) -> None:
    """Raise StorageImmutable unless the place of a config is the storage's own, or was seen to carry its repository.

    `makers` are the hypervisors whose backups lie there: where each has a place of its own, each must have looked.
    """
    moved = moved_fields(row.type, row.config, config)
    if not moved:
        return
    seen_by = {job.hypervisor_id for job in _looks(row, config, now)}
    kind = storage_types.BY_TYPE[row.type]
    enough = bool(makers) and set(makers) <= seen_by if kind.per_hypervisor else bool(seen_by)
    if not enough:
        raise StorageImmutable(field=f"{row.type}.{moved[0]}")


def moved_fields(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the fields of a place that differ between two configs of a type."""
    return [name for name in storage_types.BY_TYPE[kind].place if before.get(name) != after.get(name)]


# ---- inside -------------------------------------------------------------------------------------------------------------


def _ever_wrote(storage_id: str, hypervisor_id: str) -> bool:
    job = models.Job
    mine = (job.storage_id == storage_id) & (job.hypervisor_id == hypervisor_id) & (job.type == "backup")
    return bool(job.select().where(mine).exists())


def _places(row: models.Storage, hypervisor_id: str) -> list[str]:
    """Return the keys under which readings of the storage are noted: "" but where each hypervisor has a place of its own."""
    if not storage_types.BY_TYPE[row.type].per_hypervisor:
        return [""]
    if hypervisor_id:
        return [hypervisor_id]
    found: set[str] = set()
    for table in (models.Job, models.Schedule, models.StorageCheck, models.Reconciliation):
        rows: Any = table.select(table.hypervisor_id).where(table.storage_id == row.storage_id).distinct().tuples()
        found |= {str(one) for (one,) in rows}
    return sorted(found - {""})


def _problem(row: models.Storage, place: str, hypervisor_id: str, now: datetime) -> str:
    """Return what is missing for a proof at a place, "" for nothing."""
    table = models.Reconciliation
    read = table.get_or_none((table.storage_id == row.storage_id) & (table.hypervisor_id == place))
    where = f" on hypervisor {place}" if place else ""
    if read is None or read.start_time is None or read.end_time is None or read.epoch != installation.get().epoch:
        return f"it was not read as a whole{where}"
    if now - read.end_time > PROOF_TIME_MAX:
        return f"it was last read as a whole{where} at {read.end_time:%Y-%m-%d %H:%M} UTC"
    if read.unreadable_count:
        return f"{read.unreadable_count} manifests that lie there{where} cannot be read"
    if read.found_count and not hypervisor_id:
        return f"{read.found_count} backups lay there{where} when it was last read"
    if _wrote_since(row.storage_id, hypervisor_id or place, read.start_time):
        return f"backups ran since it was last read as a whole{where}"
    return ""


def _wrote_since(storage_id: str, hypervisor_id: str, since: datetime) -> bool:
    job = models.Job
    wrote = (job.storage_id == storage_id) & (job.type == "backup") & (job.end_time >= since)
    if hypervisor_id:
        wrote &= job.hypervisor_id == hypervisor_id
    return bool(job.select().where(wrote).exists())


def _looks(row: models.Storage, config: Mapping[str, Any], now: datetime) -> list[models.Job]:
    """Return the looks at the place of a config that found the storage's repository there, not long ago."""
    job = models.Job
    query = job.select().where(
        (job.storage_id == row.storage_id)
        & (job.type == "health")
        & job.state.in_(_WELL)
        & (job.end_time >= now - PROOF_TIME_MAX)
    )
    return [
        one
        for one in query
        if PROBE in one.spec
        and not moved_fields(row.type, one.spec[PROBE], config)
        and (one.result or {}).get("health", {}).get("initialized")
    ]
