"""How things stand at a glance, and why a server is not backed up."""

from clients.gen.backupmanager.v1 import overview_service_pb2 as messages
from clients.gen.backupmanager.v1 import overview_service_pb2_grpc
from controller import diagnosis, overview
from controller.services import check, convert_overview
from controller.services.parts import Context, Parts

LIST_DEFAULT, LIST_MAX = 8, 50


class OverviewServicer(overview_service_pb2_grpc.OverviewServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GetOverview(self, request: messages.GetOverviewRequest, context: Context) -> messages.GetOverviewResponse:
        size = check.number("list_size", request.list_size or LIST_DEFAULT, 1, LIST_MAX)
        taken = await self._parts.database.run(overview.take, self._parts.limits, size, self._parts.now())
        return messages.GetOverviewResponse(overview=convert_overview.overview(taken))

    async def DiagnoseServer(
        self, request: messages.DiagnoseServerRequest, context: Context
    ) -> messages.DiagnoseServerResponse:
        reference = check.reference("server_id", request.server_id)
        found = await self._parts.database.run(diagnosis.of_server, reference, self._parts.limits, self._parts.now())
        return convert_overview.diagnosis(found)
