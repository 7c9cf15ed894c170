"""Schedules: when the servers of a hypervisor are backed up, and where to."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from clients.gen.backupmanager.v1 import access_level_pb2, schedule_pb2, schedule_service_pb2_grpc
from clients.gen.backupmanager.v1 import schedule_service_pb2 as messages
from controller import schedule_clones, schedule_previews, schedules, storages
from controller.errors import InvalidField
from controller.rules.settings import DEFAULTS
from controller.rules.zones import find_zone
from controller.schedule_clones import CLONES_MAX
from controller.schedule_previews import Imagined
from controller.schedules import RUNS_MAX, NewSchedule, Schedule, ScheduleChange
from controller.services import check, convert, convert_schedules, paging, settings_check
from controller.services.parts import Context, Parts

DEFAULT_ACCESS = (
    "scheduled_only"  # the servers are protected, and their end users are told nothing they were not promised
)
_RUNS = 10
_OWN = ("storage_id", "default_access", "time_zone", "overrides")
_CHANGEABLE = (*_OWN, *(f"overrides.{name}" for name in DEFAULTS))


class ScheduleServicer(schedule_service_pb2_grpc.ScheduleServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateSchedule(
        self, request: messages.CreateScheduleRequest, context: Context
    ) -> messages.CreateScheduleResponse:
        new = NewSchedule(
            hypervisor=check.reference("hypervisor_id", request.hypervisor_id),
            storage=check.reference("storage_id", request.storage_id),
            default_access=_access(request.default_access) or DEFAULT_ACCESS,
            enabled=request.enabled if request.HasField("enabled") else True,
            time_zone=_zone("time_zone", request.time_zone),
            overrides=settings_check.settings(request.overrides, "overrides"),
        )
        record = await self._parts.database.run(schedules.create, new, self._parts.now())
        return messages.CreateScheduleResponse(schedule=convert_schedules.schedule(record))

    async def ListSchedules(
        self, request: messages.ListSchedulesRequest, context: Context
    ) -> messages.ListSchedulesResponse:
        storage = check.reference("storage_id", request.storage_id, optional=True)
        hypervisor = check.reference("hypervisor_id", request.hypervisor_id, optional=True)
        enabled = request.enabled if request.HasField("enabled") else None
        filters = (storage, hypervisor, enabled, request.deleted)
        page = paging.page("schedules", filters, request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, *filters, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_schedules.schedule, lambda row: (row.schedule_id,))
        return messages.ListSchedulesResponse(schedules=filled.messages, next_page_token=filled.next_page_token)

    async def GetSchedule(self, request: messages.GetScheduleRequest, context: Context) -> messages.GetScheduleResponse:
        reference = check.reference("schedule_id", request.schedule_id)
        record = await self._parts.database.run(schedules.find, reference)
        return messages.GetScheduleResponse(schedule=convert_schedules.schedule(record))

    async def UpdateSchedule(
        self, request: messages.UpdateScheduleRequest, context: Context
    ) -> messages.UpdateScheduleResponse:
        new = request.schedule
        change = _change(new, check.mask(request.update_mask, _CHANGEABLE))
        etag = check.title("schedule.etag", new.etag)
        record = await self._act(
            "schedule.schedule_id", new.schedule_id, lambda found, now: schedules.update(found, change, etag, now)
        )
        return messages.UpdateScheduleResponse(schedule=record)

    async def EnableSchedule(
        self, request: messages.EnableScheduleRequest, context: Context
    ) -> messages.EnableScheduleResponse:
        record = await self._act("schedule_id", request.schedule_id, lambda found, now: _switch(found, now, on=True))
        return messages.EnableScheduleResponse(schedule=record)

    async def DisableSchedule(
        self, request: messages.DisableScheduleRequest, context: Context
    ) -> messages.DisableScheduleResponse:
        record = await self._act("schedule_id", request.schedule_id, lambda found, now: _switch(found, now, on=False))
        return messages.DisableScheduleResponse(schedule=record)

    async def DeleteSchedule(
        self, request: messages.DeleteScheduleRequest, context: Context
    ) -> messages.DeleteScheduleResponse:
        record = await self._act("schedule_id", request.schedule_id, schedules.delete)
        return messages.DeleteScheduleResponse(schedule=record)

    async def UndeleteSchedule(
        self, request: messages.UndeleteScheduleRequest, context: Context
    ) -> messages.UndeleteScheduleResponse:
        schedule_id = check.identifier("schedule_id", request.schedule_id)
        record = await self._parts.database.run(schedules.undelete, schedule_id, self._parts.now())
        return messages.UndeleteScheduleResponse(schedule=convert_schedules.schedule(record))

    async def CloneSchedule(
        self, request: messages.CloneScheduleRequest, context: Context
    ) -> messages.CloneScheduleResponse:
        reference = check.reference("schedule_id", request.schedule_id)
        if not 1 <= len(request.hypervisor_ids) <= CLONES_MAX:
            raise InvalidField(field="hypervisor_ids", problem=f"must be 1 to {CLONES_MAX}")
        targets = [check.reference("hypervisor_ids", one) for one in request.hypervisor_ids]
        cloned = await self._parts.database.run(
            lambda now: schedule_clones.clone(schedules.find(reference).schedule_id, targets, now), self._parts.now()
        )
        return messages.CloneScheduleResponse(
            schedules=[convert_schedules.schedule(one) for one in cloned.schedules],
            passed_over=[
                messages.PassedOverHypervisor(hypervisor_id=hypervisor_id, schedule_id=schedule_id)
                for hypervisor_id, schedule_id in cloned.passed_over
            ],
            bind_address_left_out=cloned.bind_address,
        )

    async def PreviewNextRuns(
        self, request: messages.PreviewNextRunsRequest, context: Context
    ) -> messages.PreviewNextRunsResponse:
        runs, resolved = await self._parts.database.run(schedule_previews.preview, _asked(request), self._parts.now())
        return messages.PreviewNextRunsResponse(
            runs=[convert_schedules.scheduled_run(one) for one in runs], resolved=convert_schedules.resolved(resolved)
        )

    async def _act(self, field: str, reference: str, act: Callable[[str, datetime], Schedule]) -> schedule_pb2.Schedule:
        """Do something to the schedule that a reference means, in one transaction."""
        wanted = check.reference(field, reference)
        now = self._parts.now()
        record = await self._parts.database.run(lambda: act(schedules.find(wanted).schedule_id, now))
        return convert_schedules.schedule(record)


def _switch(schedule_id: str, now: datetime, *, on: bool) -> Schedule:
    return schedules.set_enabled(schedule_id, now, enabled=on)


def _access(number: Any) -> str:
    return convert.enum_word(access_level_pb2.AccessLevel.DESCRIPTOR, number)


def _zone(field: str, name: str) -> str:
    """A time zone's name, "" for the installation's."""
    if name:
        find_zone(field, name)
    return name


def _change(new: schedule_pb2.Schedule, paths: frozenset[str]) -> ScheduleChange:
    """Return what an update mask asks for: overrides that it names and that are not set are dropped."""
    given = settings_check.settings(new.overrides, "schedule.overrides")
    named = {path.partition(".")[2] for path in paths if path.startswith("overrides.")}
    names = set(DEFAULTS) if "overrides" in paths else named
    if "default_access" in paths and not new.default_access:
        raise InvalidField(
            field="schedule.default_access", problem="is missing: a schedule has nothing to inherit from"
        )
    return ScheduleChange(
        storage=check.reference("schedule.storage_id", new.storage_id) if "storage_id" in paths else None,
        default_access=_access(new.default_access) if "default_access" in paths else None,
        time_zone=_zone("schedule.time_zone", new.time_zone) if "time_zone" in paths else None,
        overrides={name: given.get(name) for name in names},
    )


def _list(storage: str, hypervisor: str, enabled: bool | None, deleted: bool, after: Any, limit: int) -> list[Schedule]:
    return schedules.list_schedules(
        storage_id=storages.find(storage).storage_id if storage else "",
        hypervisor_id=schedules.hypervisor_id_of(hypervisor) if hypervisor else "",
        enabled=enabled,
        deleted=deleted,
        after=after,
        limit=limit,
    )


def _asked(request: messages.PreviewNextRunsRequest) -> Imagined:
    overrides = settings_check.settings(request.overrides, "overrides") if request.HasField("overrides") else None
    return Imagined(
        schedule=check.reference("schedule_id", request.schedule_id, optional=True),
        storage=check.reference("storage_id", request.storage_id, optional=bool(request.schedule_id)),
        time_zone=_zone("time_zone", request.time_zone) if request.HasField("time_zone") else None,
        overrides=overrides,
        count=check.number("count", request.count or _RUNS, 1, RUNS_MAX),
    )
