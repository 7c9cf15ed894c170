"""Schedules: one for a hypervisor, saying where its servers' backups go, how often, and what differs from the storage.

    created, enabled ──► due at once ──► started ──► due again: an interval after it was due, or after its start if it had to wait
                                           ▲  │
                                           └──┘          interval 0: never due by itself (D21)

    deleted ──► listed among the deleted; the backups stay (D22, D23) ──► undeleted: disabled, until somebody enables it

What a schedule does not say comes from its storage (`rules/settings.py`). When a run may start is asked of `rules/schedule.py`,
by the dispatcher (`due`, `started`) as well as by the preview (`next_runs`). Sync functions, run by `Database.run`.
"""

import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import peewee

from controller import happenings, reach, settings, storages
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import find_row, find_rows, find_where, statement
from controller.errors import (
    ControllerError,
    EncryptionImmutable,
    EtagMismatch,
    HypervisorNotFound,
    InvalidField,
    ScheduleDeleted,
    ScheduleExists,
    ScheduleNotFound,
)
from controller.rules import capabilities
from controller.rules import schedule as rules
from controller.rules import settings as resolution
from controller.rules.schedule import Hours, Run
from controller.rules.settings import Keeper, Resolved, Silent, Window
from controller.storages import Storage
from engine.ids import new_id

log = logging.getLogger(__name__)

Row = models.Schedule
RUNS_MAX = 100


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it stands, with what holds for it by `resolved`. `due_time` is None where nothing is due by itself.

    `overrides` has only what differs from the storage, as JSON; `own_time_zone` is "" for the installation's.
    """

    schedule_id: str
    hypervisor_id: str
    storage_id: str
    enabled: bool
    default_access: str
    own_time_zone: str
    overrides: dict[str, Any]
    due_time: datetime | None
    anchor_time: datetime | None
    last_start_time: datetime | None
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    etag: str
    resolved: Resolved

    @property
    def interval_hours(self) -> int:
        """Hours from one run to the next; 0 for by hand only."""
        return self.resolved.interval_hours.value

    @property
    def interval(self) -> timedelta:
        return timedelta(hours=self.interval_hours)

    @property
    def window(self) -> Window:
        return self.resolved.window.value

    @property
    def allowed_days(self) -> frozenset[int]:
        """ISO weekdays on which runs may start; none for all."""
        return self.resolved.allowed_days.value

    @property
    def time_zone(self) -> str:
        """The IANA time zone of window, days and retention."""
        return self.resolved.time_zone.value

    @property
    def hours(self) -> Hours:
        """When servers may begin."""
        return self.resolved.hours

    @property
    def live(self) -> bool:
        return self.delete_time is None


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """What is asked for; `hypervisor` and `storage` are ids or names."""

    hypervisor: str
    storage: str
    default_access: str
    enabled: bool = True
    time_zone: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """New values; None keeps the old. In `overrides`, a value None drops the override, and a name that is absent keeps it."""

    storage: str | None = None
    default_access: str | None = None
    time_zone: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


# ---- looking ------------------------------------------------------------------------------------------------------------


def get(schedule_id: str) -> Schedule:
    """Return a schedule, also a deleted one. Raises ScheduleNotFound."""
    row = find_row(Row.schedule_id, schedule_id)
    if row is None:
        raise ScheduleNotFound(schedule_id=schedule_id)
    return of_rows([row])[0]


def find(reference: str) -> Schedule:
    """Return the schedule with this id, or the live one of the hypervisor with this id or name. Raises ScheduleNotFound."""
    row = find_row(Row.schedule_id, reference)
    if row is not None:
        return of_rows([row])[0]
    try:
        found = of_hypervisor(hypervisor_id_of(reference))
    except HypervisorNotFound:
        found = None
    if found is None:
        raise ScheduleNotFound(schedule_id=reference)
    return found


def of_hypervisor(hypervisor_id: str) -> Schedule | None:
    """Return a hypervisor's live schedule."""
    rows = find_where(Row, "hypervisor_id = ? AND delete_time IS NULL", hypervisor_id)
    return of_rows(rows)[0] if rows else None


def list_schedules(
    *,
    storage_id: str = "",
    hypervisor_id: str = "",
    enabled: bool | None = None,
    deleted: bool = False,
    after: tuple[str] | None = None,
    limit: int | None = 101,
) -> list[Schedule]:
    """Return schedules by id (oldest first), those after the id in `after`: live ones, or those that are deleted."""
    query = Row.select().where(Row.delete_time.is_null(not deleted))
    if storage_id:
        query = query.where(Row.storage_id == storage_id)
    if hypervisor_id:
        query = query.where(Row.hypervisor_id == hypervisor_id)
    if enabled is not None:
        query = query.where(Row.enabled == enabled)
    if after:
        query = query.where(Row.schedule_id > after[0])
    return of_rows(query.order_by(Row.schedule_id).limit(limit))


def due(now: datetime) -> list[Schedule]:
    """Return the schedules whose run may start now, longest overdue first: enabled, due, and within their hours."""
    rows = Row.select().where(Row.delete_time.is_null() & Row.enabled & (Row.due_time <= now))
    return [one for one in of_rows(rows.order_by(Row.due_time, Row.schedule_id)) if _may_start(one, now)]


def is_due(schedule: Schedule, now: datetime) -> bool:
    """Tell whether `due` would return a schedule."""
    if schedule.delete_time is not None or not schedule.enabled:
        return False
    return schedule.due_time is not None and schedule.due_time <= now and _may_start(schedule, now)


def resolve(storage: Storage, hypervisor_id: str = "") -> Resolved:
    """Return what holds for work of a hypervisor on a storage: its schedule counts if it is for this storage (R21)."""
    schedule = of_hypervisor(hypervisor_id) if hypervisor_id else None
    if schedule is not None and schedule.storage_id == storage.storage_id:
        return schedule.resolved
    return resolution.resolve(storage, None, settings.get().time_zone)


def next_runs(schedule: Schedule, count: int, now: datetime) -> list[Run]:
    """Return the next runs as the dispatcher will see them; those of a disabled schedule are as if it were enabled now."""
    due_time = schedule.due_time if schedule.enabled else None
    return runs_of(schedule.resolved, due_time or now, count, now)


def runs_of(resolved: Resolved, due_time: datetime, count: int, now: datetime) -> list[Run]:
    """Return the first runs of settings that are due at `due_time`, at most RUNS_MAX."""
    interval = timedelta(hours=resolved.interval_hours.value)
    return list(itertools.islice(rules.next_runs(resolved.hours, due_time, now, interval), min(count, RUNS_MAX)))


# ---- changing -----------------------------------------------------------------------------------------------------------


def create(new: NewSchedule, now: datetime) -> Schedule:
    """Make a schedule; an enabled one is due at once (D28).

    Raises HypervisorNotFound, StorageNotFound, ScheduleExists, StorageOutOfReach, BindAddressUnsupported, EncryptionImmutable,
    InvalidField.
    """
    schedule_id, hypervisor_id = new_id(now), hypervisor_id_of(new.hypervisor)
    storage = storages.find(new.storage)
    reach.check(storage, [hypervisor_id])
    resolved = check_overrides(storage, new.overrides, new.time_zone)
    check_encryption(storage, hypervisor_id, resolved, now, before=storage.encryption_enabled)
    row = new_row(schedule_id, hypervisor_id, storage.storage_id, new, resolved, now)
    try:
        with models.proxy.atomic():
            Row.insert(**row).execute()
    except peewee.IntegrityError:
        raise _exists(hypervisor_id) from None
    made = get(schedule_id)
    record("schedule.created", made, now)
    return made


def update(schedule_id: str, change: ScheduleChange, etag: str, now: datetime) -> Schedule:
    """Change a schedule. Another interval counts from where the old one did.

    Raises ScheduleNotFound, ScheduleDeleted, EtagMismatch, StorageNotFound, StorageOutOfReach, BindAddressUnsupported,
    EncryptionImmutable, InvalidField.
    """
    present = get_live(schedule_id)
    storage = storages.find(present.storage_id if change.storage is None else change.storage)
    merged = {**present.overrides, **change.overrides}
    overrides = {name: value for name, value in merged.items() if value is not None}
    time_zone = present.own_time_zone if change.time_zone is None else change.time_zone
    same_place = storage.storage_id == present.storage_id
    before = present.resolved.encryption.value if same_place else storage.encryption_enabled
    if not same_place:
        reach.check(storage, [present.hypervisor_id])
    resolved = check_overrides(storage, overrides, time_zone)
    check_encryption(storage, present.hypervisor_id, resolved, now, before=before)
    values = {
        "storage_id": storage.storage_id,
        "default_access": present.default_access if change.default_access is None else change.default_access,
        "time_zone": time_zone,
        "overrides": overrides,
    }
    _save(present, values, etag or present.etag, "schedule.updated", now)
    _rearm(present, resolved.interval_hours.value, now)
    return get(schedule_id)


def set_enabled(schedule_id: str, now: datetime, *, enabled: bool) -> Schedule:
    """Switch a schedule on, which makes it due at once, or off; again changes nothing.

    Raises ScheduleNotFound, ScheduleDeleted, and StorageOutOfReach for one to be switched on.
    """
    present = get_live(schedule_id)
    if present.enabled == enabled:
        return present
    if enabled:
        reach.check(storages.find(present.storage_id), [present.hypervisor_id])
    due_time = _first_due(present.resolved, now) if enabled else None
    values = {"enabled": enabled, "due_time": due_time, "anchor_time": None}
    _save(present, values, present.etag, "schedule.enabled" if enabled else "schedule.disabled", now)
    return get(schedule_id)


def delete(schedule_id: str, now: datetime) -> Schedule:
    """Put a schedule among the deleted; its backups stay (D22, D23). Raises ScheduleNotFound, ScheduleDeleted."""
    present = get_live(schedule_id)
    values = {"delete_time": now, "enabled": False, "due_time": None, "anchor_time": None}
    _save(present, values, present.etag, "schedule.deleted", now)
    return get(schedule_id)


def undelete(schedule_id: str, now: datetime) -> Schedule:
    """Bring a deleted schedule back, disabled. One that is live stays as it is.

    Raises ScheduleNotFound, ScheduleExists when its hypervisor got another one meanwhile, StorageNotFound when its storage
    is gone.
    """
    present = get(schedule_id)
    if present.live:
        return present
    storages.find(present.storage_id)
    try:
        with models.proxy.atomic():
            values = {"delete_time": None, "enabled": False}
            _save(present, values, present.etag, "schedule.undeleted", now)
    except peewee.IntegrityError:
        raise _exists(present.hypervisor_id) from None
    return get(schedule_id)


_STARTED = "UPDATE schedule SET last_start_time = ?, due_time = ?, anchor_time = ? WHERE schedule_id = ?"


def started(present: Schedule, now: datetime) -> None:
    """Note that a run has started; if one was due, it is this one, and the next is due an interval later (D28).

    A run that somebody forces before it is due leaves the rhythm alone.
    """
    due_time, anchor_time = present.due_time, present.anchor_time
    if due_time is not None and due_time <= now:
        due_time = rules.next_due(due_time, now, present.interval)
        anchor_time = due_time - present.interval
    times = (None if one is None else to_microseconds(one) for one in (now, due_time, anchor_time))
    statement(_STARTED, *times, present.schedule_id)


def storage_changed(storage_id: str, now: datetime) -> None:
    """Let schedules follow their storage's interval. Called in the transaction that changed the storage."""
    for schedule in list_schedules(storage_id=storage_id, limit=None):
        _rearm(schedule, schedule.interval_hours, now)


def get_live(schedule_id: str) -> Schedule:
    """Return a schedule. Raises ScheduleNotFound, ScheduleDeleted."""
    schedule = get(schedule_id)
    if not schedule.live:
        raise ScheduleDeleted(schedule_id=schedule_id)
    return schedule


# ---- inside -------------------------------------------------------------------------------------------------------------


def check_overrides(storage: Storage, overrides: Mapping[str, Any], time_zone: str) -> Resolved:
    """Return what overrides amount to on a storage. Raises BindAddressUnsupported (D19), InvalidField."""
    resolved = resolution.resolve_overrides(storage, overrides, time_zone, settings.get().time_zone)
    if overrides.get("bind_address"):
        capabilities.check_bind_address(storage.type)
    if resolved.encryption.value and not storage.key_id:
        problem = "needs a key: give the storage an encryption passphrase first"
        raise InvalidField(field="overrides.encryption", problem=problem)
    return resolved


def check_encryption(storage: Storage, hypervisor_id: str, resolved: Resolved, now: datetime, *, before: bool) -> None:
    """Raise EncryptionImmutable where this would switch the encryption of backups that a hypervisor has there (S25).

    Raises EncryptionUnproven where it may have some that the catalog does not know.
    """
    if resolved.encryption.value == before:
        return
    if storages.is_in_use(storage.storage_id, hypervisor_id):
        raise EncryptionImmutable(storage_id=storage.storage_id)
    storages.check_proven(storage.storage_id, hypervisor_id, now)


def new_row(
    schedule_id: str, hypervisor_id: str, storage_id: str, new: NewSchedule, resolved: Resolved, now: datetime
) -> dict[str, Any]:
    """Return the row of a schedule that is made now."""
    return {
        "schedule_id": schedule_id,
        "hypervisor_id": hypervisor_id,
        "storage_id": storage_id,
        "enabled": new.enabled,
        "default_access": new.default_access,
        "time_zone": new.time_zone,
        "overrides": dict(new.overrides),
        "due_time": _first_due(resolved, now) if new.enabled else None,
        "create_time": now,
        "update_time": now,
    }


def _first_due(resolved: Resolved, now: datetime) -> datetime | None:
    return now if resolved.interval_hours.value else None


def _rearm(before: Schedule, hours: int, now: datetime) -> None:
    """Bring the due time in line with an interval that may be new."""
    due_time = due_after(before, hours, now)
    if due_time != before.due_time:
        Row.update(due_time=due_time).where(Row.schedule_id == before.schedule_id).execute()


def due_after(before: Schedule, hours: int, now: datetime) -> datetime | None:
    """Return when a schedule is due once its interval is `hours`: counted from where the old one was (D28)."""
    if not before.enabled or not hours:
        return None
    if before.anchor_time is not None:
        return before.anchor_time + timedelta(hours=hours)
    return before.due_time or now  # not run since it was switched on: due at once, whatever the interval


def _may_start(schedule: Schedule, now: datetime) -> bool:
    if schedule.due_time is None:
        return False
    try:
        return rules.is_open(
            schedule.hours, now
        )  # what `next_runs` is made of; where the next opening is need not be known
    except ControllerError:  # a time zone that this host's files lost: the others must not wait for it
        log.exception("schedule cannot be read schedule_id=%s", schedule.schedule_id)
        return False


def _save(present: Schedule, values: Mapping[str, Any], etag: str, kind: str, now: datetime) -> None:
    """Write values if the schedule is still the version of `etag`. Raises EtagMismatch."""
    same = (Row.schedule_id == present.schedule_id) & (Row.version == int(present.etag))
    if etag != present.etag or not Row.update(**values, update_time=now, version=Row.version + 1).where(same).execute():
        raise EtagMismatch(etag=present.etag)
    record(kind, present, now)


def _exists(hypervisor_id: str) -> ScheduleExists:
    other = of_hypervisor(hypervisor_id)
    return ScheduleExists(hypervisor_id=hypervisor_id, schedule_id=other.schedule_id if other else "")


def hypervisor_id_of(reference: str) -> str:
    """Return the id of the hypervisor with this id or name. Raises HypervisorNotFound."""
    row = models.Hypervisor
    found = find_row(row.hypervisor_id, reference) or find_row(row.name, reference)
    if found is None or not reference:
        raise HypervisorNotFound(hypervisor_id=reference)
    return str(found.hypervisor_id)


def of_rows(rows: Iterable[models.Schedule]) -> list[Schedule]:
    """Return rows as schedules; each storage and the time zone are read once for all of them."""
    found = list(rows)
    if not found:
        return []
    zone = settings.get().time_zone
    chosen = find_rows(models.Storage.storage_id, {row.storage_id for row in found})
    known = {storage.storage_id: storage for storage in chosen}
    return [_schedule(row, known.get(row.storage_id, Silent()), zone) for row in found]


def _schedule(row: models.Schedule, storage: Keeper, zone: str) -> Schedule:
    names = [name for name in Schedule.__dataclass_fields__ if hasattr(row, name)]
    given = {name: getattr(row, name) for name in names}
    resolved = resolution.resolve_overrides(storage, row.overrides, row.time_zone, zone)
    return Schedule(**given, own_time_zone=row.time_zone, etag=str(row.version), resolved=resolved)


def record(kind: str, schedule: Schedule, now: datetime) -> None:
    """Record an event of a schedule."""
    happenings.record(
        kind,
        now,
        schedule_id=schedule.schedule_id,
        hypervisor_id=schedule.hypervisor_id,
        storage_id=schedule.storage_id,
    )
