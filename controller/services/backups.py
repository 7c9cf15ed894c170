"""Backups: making them, seeing them, restoring, checking and deleting them. What takes long becomes a job."""

from collections.abc import Sequence
from datetime import datetime

from clients.gen.backupmanager.v1 import backup_pb2, backup_service_pb2_grpc, disk_pb2
from clients.gen.backupmanager.v1 import backup_service_pb2 as messages
from controller import backups, orders, servers, storages
from controller.backups import Backup
from controller.errors import InvalidField
from controller.orders import BackupOrder, DeleteOrder, RestoreOrder, VerifyOrder
from controller.security.caller import current_caller
from controller.services import check, convert, paging
from controller.services.parts import Context, Parts

DELETE_BACKUPS_MAX = 1000  # of one request; their records and the command fit in a message (N9)
_CONFIRMATION_CHARACTERS_MAX = 512


class BackupServicer(backup_service_pb2_grpc.BackupServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def StartBackup(self, request: messages.StartBackupRequest, context: Context) -> messages.StartBackupResponse:
        order = BackupOrder(
            server_id=check.reference("server_id", request.server_id),
            storage_id=check.reference("storage_id", request.storage_id),
            type=convert.enum_word(disk_pb2.BackupType.DESCRIPTOR, request.type),
            consistency=convert.enum_word(disk_pb2.ConsistencyMode.DESCRIPTOR, request.consistency),
            disks=check.disks("disks", request.disks),
            request_id=check.request_id(request.request_id),
            override_access=request.override_access,
        )
        return messages.StartBackupResponse(job_id=await self._start(order))

    async def ListBackups(self, request: messages.ListBackupsRequest, context: Context) -> messages.ListBackupsResponse:
        server = check.reference("server_id", request.server_id, optional=True)
        storage = check.reference("storage_id", request.storage_id, optional=True)
        times = (check.instant(request, "start_time"), check.instant(request, "end_time"))
        page = paging.page("backups", (server, storage, *times), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, server, storage, times, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert.backup, lambda row: (row.backup_id,))
        return messages.ListBackupsResponse(backups=filled.messages, next_page_token=filled.next_page_token)

    async def GetBackup(self, request: messages.GetBackupRequest, context: Context) -> messages.GetBackupResponse:
        record = await self._parts.database.run(backups.get, check.identifier("backup_id", request.backup_id))
        return messages.GetBackupResponse(backup=convert.backup(record))

    async def PreviewRestore(
        self, request: messages.PreviewRestoreRequest, context: Context
    ) -> messages.PreviewRestoreResponse:
        if not request.backup_id and not request.server_id:
            raise InvalidField(field="backup_id", problem="or server_id is needed")
        preview = await self._parts.database.run(
            orders.preview_restore,
            check.identifier("backup_id", request.backup_id) if request.backup_id else "",
            check.reference("server_id", request.server_id, optional=True),
            check.disks("disks", request.disks),
            _target(request.target_folder),
            self._context(),
        )
        return messages.PreviewRestoreResponse(
            backup=convert.backup(preview.backup),
            disks=preview.disks,
            stops_server=preview.stops_server,
            chain_backup_ids=preview.chain_backup_ids,
            confirmation=preview.confirmation,
        )

    async def StartRestore(
        self, request: messages.StartRestoreRequest, context: Context
    ) -> messages.StartRestoreResponse:
        order = RestoreOrder(
            backup_id=check.identifier("backup_id", request.backup_id),
            disks=check.disks("disks", request.disks),
            target_folder=_target(request.target_folder),
            confirmation=_confirmation(request.confirmation),
            request_id=check.request_id(request.request_id),
            override_access=request.override_access,
        )
        return messages.StartRestoreResponse(job_id=await self._start(order))

    async def StartVerify(self, request: messages.StartVerifyRequest, context: Context) -> messages.StartVerifyResponse:
        order = VerifyOrder(
            backup_id=check.identifier("backup_id", request.backup_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.StartVerifyResponse(job_id=await self._start(order))

    async def PreviewDelete(
        self, request: messages.PreviewDeleteRequest, context: Context
    ) -> messages.PreviewDeleteResponse:
        chosen = check.identifiers("backup_ids", request.backup_ids, DELETE_BACKUPS_MAX)
        preview = await self._parts.database.run(orders.preview_delete, chosen, self._context())
        return messages.PreviewDeleteResponse(
            backups=_shown(preview.backups),
            stored_bytes=preview.stored_bytes,
            confirmation=preview.confirmation,
        )

    async def StartDelete(self, request: messages.StartDeleteRequest, context: Context) -> messages.StartDeleteResponse:
        order = DeleteOrder(
            backup_ids=check.identifiers("backup_ids", request.backup_ids, DELETE_BACKUPS_MAX),
            confirmation=_confirmation(request.confirmation),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.StartDeleteResponse(job_id=await self._start(order))

    def _context(self) -> orders.Context:
        return orders.Context(self._parts.limits, self._parts.vault, current_caller().name, self._parts.now())

    async def _start(self, order: orders.Order) -> str:
        return await self._parts.database.run(orders.start, order, self._context())


def _list(
    server: str,
    storage: str,
    times: tuple[datetime | None, datetime | None],
    after: tuple[str] | None,
    limit: int,
) -> list[Backup]:
    return backups.list_backups(
        server_id=servers.find(server).server_id if server else "",
        storage_id=storages.find(storage).storage_id if storage else "",
        start_time=times[0],
        end_time=times[1],
        after=after,
        limit=limit,
    )


def _shown(records: Sequence[Backup]) -> list[backup_pb2.Backup]:
    """Return all of them, since a preview that leaves one out is a trap; without their disks where these do not fit."""
    shown = [convert.backup(one) for one in records]
    if paging.fits(shown):
        return shown
    for one in shown:
        one.ClearField("disks")
        one.ClearField("skipped_disks")
    if not paging.fits(shown):
        raise InvalidField(field="backup_ids", problem="would remove more backups than one preview can show")
    return shown


def _target(text: str) -> str:
    return check.path("target_folder", text) if text else ""


def _confirmation(text: str) -> str:
    if not text:
        raise InvalidField(field="confirmation", problem="is missing; it is given by the preview")
    if len(text) > _CONFIRMATION_CHARACTERS_MAX:
        raise InvalidField(field="confirmation", problem="is too long")
    return text
