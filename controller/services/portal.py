"""The end users' service: what `controller/portal.py` shows, and one place where every other error loses what it knows (U7)."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Concatenate, ParamSpec, TypeVar

from clients.gen.backupmanager.v1 import portal_service_pb2 as messages
from clients.gen.backupmanager.v1 import portal_service_pb2_grpc
from controller import portal
from controller.context import Context as OrderContext
from controller.errors import (
    ConfirmationStale,
    CooldownActive,
    DriveNotFound,
    InvalidField,
    InvalidPageToken,
    JobNotFound,
    NotIncluded,
    PointNotFound,
    PortalRefused,
    SelfServiceOff,
    ServerNotFound,
    ShuttingDown,
    Unauthenticated,
)
from controller.jobs import Job
from controller.portal import Visitor
from controller.rules import portal as rules
from controller.security import tokens
from controller.security.caller import current_caller
from controller.services import check, convert_portal, paging
from controller.services.parts import Context, Parts
from engine.errors import BackupManagerError

P = ParamSpec("P")
T = TypeVar("T")
_POLL_MAX = timedelta(seconds=30)
_LOOK_SECONDS = 15.0  # how late a watch that has nothing to say notices that its token was revoked
_CURSOR_MAX = (1 << 63) - 1
_ID_CHARACTERS_MAX = 64
_TELLING = (  # what these say is the caller's own, or made for an end user; subclasses are told apart by exact type
    ConfirmationStale,
    CooldownActive,
    DriveNotFound,
    InvalidField,
    InvalidPageToken,
    JobNotFound,
    NotIncluded,
    PointNotFound,
    PortalRefused,
    SelfServiceOff,
    ServerNotFound,
    ShuttingDown,
    Unauthenticated,
)


class PortalServicer(portal_service_pb2_grpc.PortalServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # ---- seeing --------------------------------------------------------------------------------------------------------

    async def ListPortalServers(
        self, request: messages.ListPortalServersRequest, context: Context
    ) -> messages.ListPortalServersResponse:
        page = paging.page("portal servers", (), request.page_size, request.page_token, (str, str))
        rows = await self._run(portal.list_servers, self._context(), after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_portal.server, lambda row: (row.name, row.server_id))
        return messages.ListPortalServersResponse(servers=filled.messages, next_page_token=filled.next_page_token)

    async def GetPortalServer(
        self, request: messages.GetPortalServerRequest, context: Context
    ) -> messages.GetPortalServerResponse:
        server_id = check.identifier("server_id", request.server_id)
        record = await self._run(portal.get_server, server_id, self._context())
        return messages.GetPortalServerResponse(server=convert_portal.server(record))

    async def ListPortalDrives(
        self, request: messages.ListPortalDrivesRequest, context: Context
    ) -> messages.ListPortalDrivesResponse:
        server_id = check.identifier("server_id", request.server_id)
        page = paging.page("portal drives", (server_id,), request.page_size, request.page_token, (int,))
        rows = list(enumerate(await self._run(portal.list_drives, server_id, self._context())))
        first = page.after[0] + 1 if page.after else 0
        filled = paging.fill(
            page, rows[max(0, first) :], lambda row: convert_portal.drive(row[1]), lambda row: (row[0],)
        )
        return messages.ListPortalDrivesResponse(drives=filled.messages, next_page_token=filled.next_page_token)

    async def ListPortalBackups(
        self, request: messages.ListPortalBackupsRequest, context: Context
    ) -> messages.ListPortalBackupsResponse:
        server_id = check.identifier("server_id", request.server_id)
        drive = check.title("drive", request.drive)
        page = paging.page("portal backups", (server_id, drive), request.page_size, request.page_token, (str,))
        rows = await self._run(
            portal.list_points, server_id, drive, self._context(), after=page.after, limit=page.size + 1
        )
        filled = paging.fill(page, rows, convert_portal.point, lambda row: (row.point_id,))
        return messages.ListPortalBackupsResponse(backups=filled.messages, next_page_token=filled.next_page_token)

    # ---- doing ---------------------------------------------------------------------------------------------------------

    async def StartPortalBackup(
        self, request: messages.StartPortalBackupRequest, context: Context
    ) -> messages.StartPortalBackupResponse:
        server_id = check.identifier("server_id", request.server_id)
        request_id = check.request_id(request.request_id)
        job = await self._run(portal.start_backup, server_id, request_id, self._context())
        return messages.StartPortalBackupResponse(operation=convert_portal.operation(job))

    async def PreviewPortalRestore(
        self, request: messages.PreviewPortalRestoreRequest, context: Context
    ) -> messages.PreviewPortalRestoreResponse:
        preview = await self._run(
            portal.preview_restore,
            check.identifier("server_id", request.server_id),
            _point_id(request.point_id),
            _drives(list(request.drives)),
            self._context(),
        )
        return messages.PreviewPortalRestoreResponse(
            backup=convert_portal.point(preview.point),
            drives=preview.drives,
            stops_server=preview.stops_server,
            confirmation=preview.confirmation,
        )

    async def StartPortalRestore(
        self, request: messages.StartPortalRestoreRequest, context: Context
    ) -> messages.StartPortalRestoreResponse:
        job = await self._run(
            portal.start_restore,
            check.identifier("server_id", request.server_id),
            _point_id(request.point_id),
            _drives(list(request.drives)),
            check.title("confirmation", request.confirmation, optional=False),
            check.request_id(request.request_id),
            self._context(),
        )
        return messages.StartPortalRestoreResponse(operation=convert_portal.operation(job))

    # ---- following -----------------------------------------------------------------------------------------------------

    async def ListPortalOperations(
        self, request: messages.ListPortalOperationsRequest, context: Context
    ) -> messages.ListPortalOperationsResponse:
        server_id = check.identifier("server_id", request.server_id)
        page = paging.page("portal operations", (server_id,), request.page_size, request.page_token, (str,))
        rows = await self._run(
            portal.list_operations, server_id, self._context(), after=page.after, limit=page.size + 1
        )
        filled = paging.fill(page, rows, convert_portal.operation, lambda row: (row.job_id,))
        return messages.ListPortalOperationsResponse(operations=filled.messages, next_page_token=filled.next_page_token)

    async def GetPortalOperation(
        self, request: messages.GetPortalOperationRequest, context: Context
    ) -> messages.GetPortalOperationResponse:
        job = await self._read(check.identifier("operation_id", request.operation_id))
        return messages.GetPortalOperationResponse(operation=convert_portal.operation(job))

    async def WatchPortalOperation(
        self, request: messages.WatchPortalOperationRequest, context: Context
    ) -> AsyncIterator[messages.WatchPortalOperationResponse]:
        operation_id = check.identifier("operation_id", request.operation_id)
        seen = check.number("cursor", request.cursor, 0, _CURSOR_MAX)
        with self._parts.changes.watch(operation_id) as watch:
            while True:
                job = await self._read(operation_id)
                if job.version > seen:
                    seen = job.version
                    yield messages.WatchPortalOperationResponse(operation=convert_portal.operation(job))
                if job.ended:
                    return
                await watch.wait(job.version, _LOOK_SECONDS)
                self._refuse_when_stopping()

    async def PollPortalOperation(
        self, request: messages.PollPortalOperationRequest, context: Context
    ) -> messages.PollPortalOperationResponse:
        operation_id = check.identifier("operation_id", request.operation_id)
        cursor = check.number("cursor", request.cursor, 0, _CURSOR_MAX)
        wait = check.span(request, "wait", _POLL_MAX, timedelta(0), _POLL_MAX) or timedelta(0)
        with self._parts.changes.watch(operation_id) as watch:
            job = await self._read(operation_id)
            if job.version <= cursor and not job.ended and wait:
                await watch.wait(cursor, wait.total_seconds())
                self._refuse_when_stopping()
                job = await self._read(operation_id)
        return messages.PollPortalOperationResponse(operation=convert_portal.operation(job))

    # ---- inside --------------------------------------------------------------------------------------------------------

    async def _run(self, function: Callable[Concatenate[Visitor, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of `portal` for the caller; what it raises goes out without anything that a user must not know."""
        with _shielded():
            return await self._parts.database.run(function, _visitor(), *args, **kwargs)

    async def _read(self, operation_id: str) -> Job:
        """Return an operation as it is now, to a token that still works."""
        return await self._run(_read, current_caller().access_token_id, operation_id, self._context())

    def _context(self) -> OrderContext:
        parts = self._parts
        return OrderContext(parts.limits, parts.vault, current_caller().name, parts.now())

    def _refuse_when_stopping(self) -> None:
        if self._parts.changes.closed:
            raise ShuttingDown


@contextmanager
def _shielded() -> Iterator[None]:
    """Let through what was made for end users, and turn every other refusal into a word and a sentence."""
    try:
        yield
    except BackupManagerError as error:
        if type(error) in _TELLING:
            raise
        refusal = rules.refusal_of(error.reason)
        told = PortalRefused(refusal=refusal, advice=rules.ADVICE[refusal])
    else:
        return
    raise told  # outside of the handler, so that no traceback carries the other along


def _visitor() -> Visitor:
    caller = current_caller()
    if caller.token_time is None:
        raise Unauthenticated(problem="this service answers to portal tokens")
    return Visitor(caller.token_time, caller.server_ids)


def _read(visitor: Visitor, token_id: str, operation_id: str, context: OrderContext) -> Job:
    now: datetime = context.now
    tokens.check_works(token_id, now)
    return portal.get_operation(visitor, operation_id, context)


def _point_id(text: str) -> str:
    if not text or len(text) > _ID_CHARACTERS_MAX:
        raise InvalidField(field="point_id", problem=f"must have 1 to {_ID_CHARACTERS_MAX} characters")
    return text


def _drives(names: list[str]) -> list[str]:
    if len(names) > check.DISKS_MAX:
        raise InvalidField(field="drives", problem=f"has more than {check.DISKS_MAX} entries")
    return list(dict.fromkeys(check.title("drives", name, optional=False) for name in names))
