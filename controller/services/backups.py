"""Backups: making them, seeing them, restoring, checking and deleting them. What takes long becomes a job."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from google.protobuf.descriptor import EnumDescriptor

from clients.gen.backupmanager.v1 import backup_pb2, backup_service_pb2_grpc, disk_pb2
from clients.gen.backupmanager.v1 import backup_service_pb2 as messages
from controller import backups, orders, previews, servers, storages
from controller.backups import Backup, BackupFilter
from controller.context import Context as OrderContext
from controller.errors import InvalidField
from controller.order_types import BackupOrder, DeleteOrder, Order, RestoreOrder, TicketOrder, VerifyOrder
from controller.previews import Chain
from controller.rules import tree
from controller.rules.restoring import RestoreChoice
from controller.security.caller import current_caller
from controller.services import check, convert, convert_backups, paging
from controller.services.parts import Context, Parts

_CONFIRMATION_CHARACTERS_MAX = 512
_TICKET_LIFETIME = timedelta(hours=24)
_TICKET_LIFETIMES = timedelta(minutes=5), timedelta(days=7)


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
            disk_types={disk: _type(kind) for disk, kind in check.by_disk("disk_types", request.disk_types).items()},
        )
        return messages.StartBackupResponse(job_id=await self._start(order))

    async def ListBackups(self, request: messages.ListBackupsRequest, context: Context) -> messages.ListBackupsResponse:
        wanted = BackupFilter(
            server_id=check.reference("server_id", request.server_id, optional=True),
            storage_id=check.reference("storage_id", request.storage_id, optional=True),
            job_id=check.identifier("job_id", request.job_id) if request.job_id else "",
            types=_words(disk_pb2.BackupType.DESCRIPTOR, request.types),
            states=_words(backup_pb2.BackupState.DESCRIPTOR, request.states),
            encrypted=request.encrypted if request.HasField("encrypted") else None,
            start_time=check.instant(request, "start_time"),
            end_time=check.instant(request, "end_time"),
        )
        page = paging.page("backups", (wanted,), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, wanted, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_backups.backup, lambda row: (row.backup_id,))
        return messages.ListBackupsResponse(backups=filled.messages, next_page_token=filled.next_page_token)

    async def GetBackup(self, request: messages.GetBackupRequest, context: Context) -> messages.GetBackupResponse:
        record = await self._parts.database.run(backups.get, check.identifier("backup_id", request.backup_id))
        return messages.GetBackupResponse(backup=convert_backups.backup(record))

    async def ListBackupChains(
        self, request: messages.ListBackupChainsRequest, context: Context
    ) -> messages.ListBackupChainsResponse:
        server = check.reference("server_id", request.server_id)
        storage = check.reference("storage_id", request.storage_id, optional=True)
        disk = next(iter(check.disks("disk", [request.disk])), "") if request.disk else ""
        kinds = (str, str, int, int, str)
        page = paging.page("chains", (server, storage, disk), request.page_size, request.page_token, kinds)
        rows = await self._parts.database.run(_chains, server, storage, disk, page.after, page.size + 1)
        filled = paging.fill(page, rows, lambda row: convert_backups.backup_chain(*row), lambda row: row[0].key)
        return messages.ListBackupChainsResponse(chains=filled.messages, next_page_token=filled.next_page_token)

    async def PreviewRestore(
        self, request: messages.PreviewRestoreRequest, context: Context
    ) -> messages.PreviewRestoreResponse:
        if not request.backup_id and not request.server_id:
            raise InvalidField(field="backup_id", problem="or server_id is needed")
        preview = await self._parts.database.run(
            previews.preview_restore,
            check.identifier("backup_id", request.backup_id) if request.backup_id else "",
            check.reference("server_id", request.server_id, optional=True),
            check.disks("disks", request.disks),
            _target(request.target_folder),
            self._context(),
            _choice(request),
        )
        return messages.PreviewRestoreResponse(
            backup=convert_backups.backup(preview.backup),
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
            choice=_choice(request),
            confirmation=confirmation_of(request.confirmation),
            request_id=check.request_id(request.request_id),
            override_access=request.override_access,
            during_batch=request.during_batch,
        )
        return messages.StartRestoreResponse(job_id=await self._start(order))

    async def StartVerify(self, request: messages.StartVerifyRequest, context: Context) -> messages.StartVerifyResponse:
        order = VerifyOrder(
            backup_id=check.identifier("backup_id", request.backup_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.StartVerifyResponse(job_id=await self._start(order))

    async def CreateRestoreTicket(
        self, request: messages.CreateRestoreTicketRequest, context: Context
    ) -> messages.CreateRestoreTicketResponse:
        lifetime = check.span(request, "lifetime", _TICKET_LIFETIME, *_TICKET_LIFETIMES)
        order = TicketOrder(
            backup_id=check.identifier("backup_id", request.backup_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            disks=check.disks("disks", request.disks),
            lifetime_seconds=int((lifetime or _TICKET_LIFETIME).total_seconds()),
            request_id=check.request_id(request.request_id),
            override_access=request.override_access,
        )
        return messages.CreateRestoreTicketResponse(job_id=await self._start(order))

    async def PreviewDelete(
        self, request: messages.PreviewDeleteRequest, context: Context
    ) -> messages.PreviewDeleteResponse:
        chosen, chain = _doomed(request)
        preview = await self._parts.database.run(previews.preview_delete, chosen, self._context(), chain)
        return messages.PreviewDeleteResponse(
            backups=_shown(preview.backups),
            stored_bytes=preview.stored_bytes,
            record_count=preview.record_count,
            active=preview.active,
            confirmation=preview.confirmation,
        )

    async def StartDelete(self, request: messages.StartDeleteRequest, context: Context) -> messages.StartDeleteResponse:
        chosen, chain = _doomed(request)
        order = DeleteOrder(
            backup_ids=chosen,
            chain=chain,
            confirmation=confirmation_of(request.confirmation),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.StartDeleteResponse(job_id=await self._start(order))

    def _context(self) -> OrderContext:
        return OrderContext(self._parts.limits, self._parts.vault, current_caller().name, self._parts.now())

    async def _start(self, order: Order) -> str:
        return await self._parts.database.run(orders.start, order, self._context())


def _list(wanted: BackupFilter, after: tuple[str] | None, limit: int) -> list[Backup]:
    """List what is wanted, server and storage in it named by the caller's words."""
    named = replace(
        wanted,
        server_id=servers.find(wanted.server_id).server_id if wanted.server_id else "",
        storage_id=storages.find(wanted.storage_id).storage_id if wanted.storage_id else "",
    )
    return backups.list_backups(named, after=after, limit=limit)


def _chains(server: str, storage: str, disk: str, after: tree.Key | None, limit: int) -> list[tuple[tree.Chain, str]]:
    """Return chains, each with its storage's name, those after a key."""
    found = servers.find(server)
    storage_id = storages.find(storage).storage_id if storage else ""
    present = {str(one.get("disk", "")) for one in found.disks}
    chains = backups.list_chains(found.server_id, present, storage_id=storage_id, disk=disk)
    page = [one for one in chains if after is None or one.key > after][:limit]
    names = storages.names_of({one.storage_id for one in page})
    return [(one, names.get(one.storage_id, "")) for one in page]


def _words(kind: EnumDescriptor, numbers: Iterable[int]) -> tuple[str, ...]:
    """Return the words of enum values, each once, without the one that means all."""
    return tuple(sorted({convert.enum_word(kind, one) for one in numbers} - {""}))


def _doomed(
    request: messages.PreviewDeleteRequest | messages.StartDeleteRequest,
) -> tuple[tuple[str, ...], Chain | None]:
    """Return the backups that are to be deleted, or the chain."""
    if not request.HasField("chain"):
        return check.identifiers("backup_ids", request.backup_ids, previews.DELETE_BACKUPS_MAX), None
    if request.backup_ids:
        raise InvalidField(field="chain", problem="stands instead of backup_ids")
    asked = request.chain
    return (), Chain(
        check.reference("chain.server_id", asked.server_id),
        check.reference("chain.storage_id", asked.storage_id),
        check.reference("chain.chain_id", asked.chain_id),
        next(iter(check.disks("chain.disk", [asked.disk])), "") if asked.disk else "",
    )


def _shown(records: Sequence[Backup]) -> list[backup_pb2.Backup]:
    """Return all of them, since a preview that leaves one out is a trap; without their disks where these do not fit."""
    shown = [convert_backups.backup(one) for one in records]
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


def _choice(request: messages.PreviewRestoreRequest | messages.StartRestoreRequest) -> RestoreChoice:
    points, targets = check.by_disk("points", request.points), check.by_disk("targets", request.targets)
    return RestoreChoice(
        points={disk: check.identifier("points", backup_id) for disk, backup_id in points.items()},
        targets={disk: check.path("targets", path) for disk, path in targets.items()},
        target_format=convert.enum_word(disk_pb2.ImageFormat.DESCRIPTOR, request.target_format),
        overwrite=request.overwrite,
    )


def _type(number: int) -> str:
    kinds = disk_pb2.BackupType.DESCRIPTOR
    if number == disk_pb2.BACKUP_TYPE_UNSPECIFIED or number not in kinds.values_by_number:
        raise InvalidField(field="disk_types", problem="holds a disk without a type that we know")
    return convert.enum_word(kinds, number)


def confirmation_of(text: str) -> str:
    """Return a confirmation as a preview gave it. Raises InvalidField."""
    if not text:
        raise InvalidField(field="confirmation", problem="is missing; it is given by the preview")
    if len(text) > _CONFIRMATION_CHARACTERS_MAX:
        raise InvalidField(field="confirmation", problem="is too long")
    return text
