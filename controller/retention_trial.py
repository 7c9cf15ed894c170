"""Trying a policy before it is saved, over a server's backups or over imagined ones (R18).

The backups are read by `Database.run`; what becomes of them is decided by pure functions, beside the database's thread.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from controller import retention, servers, storages
from controller.errors import InvalidField
from controller.retention import Applied, History
from controller.rules import retention as policies
from engine import retention as engine
from engine.retention import Backup, DiskPoint, Rhythm, Verdict

BACKUPS_MAX = 20_000
DAYS_MAX = 36_500


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be tried; None and "" take what applies."""

    policy: dict[str, Any] | None = None
    keep_last: int | None = None
    time_zone: str = ""

    def over(self, applied: Applied) -> Applied:
        """Return what applies with the wish in its place."""
        return replace(
            applied,
            policy=applied.policy if self.policy is None else self.policy,
            keep_last=applied.keep_last if self.keep_last is None else self.keep_last,
            time_zone=self.time_zone or applied.time_zone,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """Backups, and what they are tried with. `stored_bytes` is by backup."""

    history: History
    storage_id: str
    applied: Applied
    stored_bytes: dict[str, int]


def of_server(server: str, storage: str, wish: Wish) -> Trial:
    """Return a trial of a server's backups. Inside Database.run. Raises ServerNotFound, StorageNotFound."""
    server_id, place = servers.find(server).server_id, storages.find(storage)
    found = retention.histories(place.storage_id, [server_id])
    history = found[0] if found else History(server_id, "", ())
    applied = retention.basis(place).applied(history.hypervisor_id)
    stored = retention.stored_bytes(server_id, place.storage_id)
    return Trial(history, place.storage_id, wish.over(applied), stored)


def of_imagined(interval: timedelta, full_interval_days: int, days: int, wish: Wish, now: datetime) -> Trial:
    """Return a trial of backups that were made every `interval`, the last one now. Raises InvalidField. Pure."""
    count = timedelta(days=days) // interval + 1
    if count > BACKUPS_MAX:
        raise InvalidField(field="imagined.days", problem=f"makes more than {BACKUPS_MAX} backups")
    fulls = timedelta(days=full_interval_days)
    made: list[Backup] = []
    chain, begun, needs = "", now, frozenset[str]()
    for number in range(count):
        time, backup_id = now - interval * (count - 1 - number), f"{number:06}"
        if not chain or not fulls or time + interval / 2 >= begun + fulls:
            chain, begun, needs = backup_id, time, frozenset()
        made.append(Backup(backup_id, time, (DiskPoint("vda", chain, needs),)))
        needs = frozenset({backup_id})
    applied = Applied({}, policies.KEEP_LAST_DEFAULT, "UTC", "sftp", rhythm=Rhythm(interval, fulls or interval))
    return Trial(History("", "", tuple(made)), "", wish.over(applied), {})


def verdicts(trial: Trial, now: datetime) -> list[Verdict]:
    """Return what would become of each backup, oldest first. Pure."""
    return engine.explain(trial.history.backups, trial.applied.rules, now, trial.applied.rhythm)


def kept_chains(trial: Trial, found: list[Verdict]) -> int:
    """Return of how many chains something would stay. Pure."""
    kept = {one.backup_id for one in found if one.kept}
    return len(
        {(point.disk, point.chain_id) for one in trial.history.backups if one.backup_id in kept for point in one.disks}
    )
