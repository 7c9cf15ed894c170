"""Presets: performance settings that go together."""

from clients.gen.backupmanager.v1 import preset_service_pb2 as messages
from clients.gen.backupmanager.v1 import preset_service_pb2_grpc
from controller import presets
from controller.rules.presets import PRESETS
from controller.services import check, convert_schedules, convert_storages, paging, standing
from controller.services.parts import Context, Parts


class PresetServicer(preset_service_pb2_grpc.PresetServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListPresets(self, request: messages.ListPresetsRequest, context: Context) -> messages.ListPresetsResponse:
        page = paging.page("presets", (), request.page_size, request.page_token, (str,))
        rows = [one for name, one in sorted(PRESETS.items()) if page.after is None or name > page.after[0]]
        filled = paging.fill(page, rows, convert_schedules.preset, lambda row: (row.name,))
        return messages.ListPresetsResponse(presets=filled.messages, next_page_token=filled.next_page_token)

    async def ApplyPreset(self, request: messages.ApplyPresetRequest, context: Context) -> messages.ApplyPresetResponse:
        preset, storage, schedule = await self._parts.database.run(
            presets.apply,
            check.title("preset", request.preset, optional=False),
            check.reference("storage_id", request.storage_id),
            check.reference("schedule_id", request.schedule_id, optional=True),
            (check.title("storage_etag", request.storage_etag), check.title("schedule_etag", request.schedule_etag)),
            self._parts.vault,
            self._parts.now(),
        )
        return messages.ApplyPresetResponse(
            preset=convert_schedules.preset(preset),
            storage=convert_storages.storage(*(await self._parts.database.run(standing.of_storages, [storage]))[0]),
            schedule=None if schedule is None else convert_schedules.schedule(schedule),
        )
