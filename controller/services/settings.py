"""The settings of the whole installation."""

from clients.gen.backupmanager.v1 import settings_service_pb2 as messages
from clients.gen.backupmanager.v1 import settings_service_pb2_grpc
from controller import settings
from controller.services import check, convert_schedules
from controller.services.parts import Context, Parts


class SettingsServicer(settings_service_pb2_grpc.SettingsServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GetSettings(self, request: messages.GetSettingsRequest, context: Context) -> messages.GetSettingsResponse:
        record = await self._parts.database.run(settings.read)
        return messages.GetSettingsResponse(settings=convert_schedules.settings(record))

    async def UpdateSettings(
        self, request: messages.UpdateSettingsRequest, context: Context
    ) -> messages.UpdateSettingsResponse:
        new = request.settings
        values = {name: getattr(new, name) for name in check.mask(request.update_mask, settings.NAMES)}
        if "max_concurrent_batches" in values and not new.HasField("max_concurrent_batches"):
            values["max_concurrent_batches"] = None
        etag = check.title("settings.etag", new.etag)
        record = await self._parts.database.run(settings.update, values, etag, self._parts.now())
        return messages.UpdateSettingsResponse(settings=convert_schedules.settings(record))
