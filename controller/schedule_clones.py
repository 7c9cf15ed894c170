"""Giving many hypervisors the same schedule, in few statements (D4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import peewee

from controller import reach, schedules, storages
from controller.db import models
from controller.errors import HypervisorNotFound, ScheduleExists
from controller.schedules import NewSchedule, Schedule
from engine.ids import new_id

Row = models.Schedule
CLONES_MAX = 1000
_ROWS_MAX = 500  # in one statement


@dataclass(frozen=True, slots=True)
class Cloned:
    """What cloning made, the hypervisors it passed over (with the schedules they have), and the address it left out (D4)."""

    schedules: tuple[Schedule, ...]
    passed_over: tuple[tuple[str, str], ...]
    bind_address: str


def clone(schedule_id: str, hypervisors: Sequence[str], now: datetime) -> Cloned:
    """Give hypervisors (ids or names) the same schedule, but for the bind address, which is one host's own (D4).

    A hypervisor that has a schedule is passed over. Raises ScheduleNotFound, ScheduleDeleted, HypervisorNotFound, and what
    `create` does: all are cloned or none.
    """
    source = schedules.get_live(schedule_id)
    overrides = {name: value for name, value in source.overrides.items() if name != "bind_address"}
    new = NewSchedule("", source.storage_id, source.default_access, source.enabled, source.own_time_zone, overrides)
    storage = storages.find(source.storage_id)
    resolved = schedules.check_overrides(storage, overrides, source.own_time_zone)
    wanted = _ids(hypervisors)
    taken = {
        row.hypervisor_id: row.schedule_id
        for row in Row.select().where(Row.hypervisor_id.in_(wanted) & Row.delete_time.is_null())
    }
    free = [one for one in wanted if one not in taken]
    reach.check(storage, free)
    for hypervisor_id in free:
        schedules.check_encryption(storage, hypervisor_id, resolved, now, before=storage.encryption_enabled)
    rows = [schedules.new_row(new_id(now), one, storage.storage_id, new, resolved, now) for one in free]
    try:
        with models.proxy.atomic():
            for start in range(0, len(rows), _ROWS_MAX):
                Row.insert_many(rows[start : start + _ROWS_MAX]).execute()
    except peewee.IntegrityError:  # another controller made one for one of them at this moment
        raise ScheduleExists(hypervisor_id=", ".join(free), schedule_id="") from None
    found = {
        one.hypervisor_id: one
        for one in schedules.of_rows(Row.select().where(Row.schedule_id.in_([row["schedule_id"] for row in rows])))
    }
    made = tuple(found[hypervisor_id] for hypervisor_id in free)
    for one in made:
        schedules.record("schedule.created", one, now)
    passed = tuple((one, taken[one]) for one in wanted if one in taken)
    return Cloned(made, passed, source.overrides.get("bind_address", ""))


def _ids(references: Sequence[str]) -> list[str]:
    """Return the ids of hypervisors by id or name, each once, in the caller's order. Raises HypervisorNotFound."""
    row = models.Hypervisor
    known: dict[str, str] = {}
    for one in row.select(row.hypervisor_id, row.name).where(
        row.hypervisor_id.in_(references) | row.name.in_(references)
    ):
        known.setdefault(one.name, one.hypervisor_id)
        known[one.hypervisor_id] = one.hypervisor_id
    for reference in references:
        if reference not in known:
            raise HypervisorNotFound(hypervisor_id=reference)
    return list(dict.fromkeys(known[reference] for reference in references))
