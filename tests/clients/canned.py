"""A controller that knows only canned rows: a real gRPC server over TLS, in a thread of the test's process.

    with Canned() as controller:
        controller.refuse("StartBackup", "VM_BUSY", FAILED_PRECONDITION, job_id=…)
        controller.change(job_id, state=…)          # WatchJob and PollJob say it to whoever listens

For what the real controller cannot be brought to say at will: any reason, broken streams, a job that moves when the test
says so. Requests are kept in `calls` by the RPC's name.
"""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from clients.gen.backupmanager.v1 import access_token_pb2, job_pb2, server_pb2, storage_pb2, ticket_pb2
from clients.gen.backupmanager.v1 import access_token_service_pb2 as token_calls
from clients.gen.backupmanager.v1 import backup_service_pb2 as backup_calls
from clients.gen.backupmanager.v1 import hypervisor_service_pb2 as hypervisor_calls
from clients.gen.backupmanager.v1 import job_service_pb2 as job_calls
from clients.gen.backupmanager.v1 import overview_service_pb2 as overview_calls
from clients.gen.backupmanager.v1 import server_service_pb2 as server_calls
from clients.gen.backupmanager.v1 import storage_service_pb2 as storage_calls
from clients.gen.backupmanager.v1 import system_service_pb2 as system_calls
from clients.gen.backupmanager.v1 import ticket_service_pb2 as ticket_calls
from tests.clients import overviews, rows
from tests.clients.authority import Authority

TOKEN = "bmt_" + "T" * 43
NEW_TOKEN = "bmt_" + "N" * 43
ENROLLMENT_TOKEN = "bm1.canned"
_ENDED = {
    job_pb2.JOB_STATE_COMPLETED,
    job_pb2.JOB_STATE_COMPLETED_WITH_WARNINGS,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
}
T = TypeVar("T")


class Refused(Exception):
    def __init__(self, reason: str, status: grpc.StatusCode, facts: dict[str, str]) -> None:
        super().__init__(reason)
        self.reason, self.status, self.facts = reason, status, facts


class Canned:
    """The server; `address`, `authority` and TOKEN are what a client needs."""

    def __init__(self, authority: Authority | None = None, port: int = 0) -> None:
        self.authority = authority or Authority()
        self.port = port
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.hypervisors, self.domains, self.servers = rows.hypervisors(), rows.domains(), rows.servers()
        self.storages, self.backups, self.tokens = rows.storages(), rows.backups(), rows.tokens()
        self.tickets = rows.tickets()
        self.jobs = {job.job_id: job for job in rows.jobs()}
        self.log = rows.log_entries()
        self.overview, self.chains = overviews.overview(), overviews.chains()
        self.watchable = True
        self._refusals: dict[str, deque[Refused]] = defaultdict(deque)

    # ---- what a test says ---------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def refuse(self, method: str, reason: str, status: grpc.StatusCode, times: int = 1, **facts: str) -> None:
        """Refuse the next calls of an RPC; `reason` "" is what a broken connection looks like."""
        self._refusals[method].extend([Refused(reason, status, facts)] * times)

    def change(self, job_id: str, **fields: Any) -> None:
        """Change a job and wake whoever watches it. A field of a message type is replaced."""

        async def change() -> None:
            job = self.jobs[job_id]
            for name, value in fields.items():
                if hasattr(value, "DESCRIPTOR"):
                    getattr(job, name).CopyFrom(value)
                elif isinstance(value, list):
                    del getattr(job, name)[:]
                    getattr(job, name).extend(value)
                else:
                    setattr(job, name, value)
            job.version += 1
            async with self._changed:
                self._changed.notify_all()

        self._on_loop(change())

    def break_streams(self) -> None:
        """End every WatchJob as a controller does that goes away."""

        async def end() -> None:
            for queue in list(self._watchers):
                queue.set()
            async with self._changed:
                self._changed.notify_all()

        self._on_loop(end())

    def watching(self) -> int:
        """Return how many WatchJob streams are open."""
        return len(self._watchers)

    # ---- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="canned controller")
        self._thread.start()
        self._on_loop(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._changed = asyncio.Condition()
        self._watchers: set[asyncio.Event] = set()
        self._server = aio.server()
        self._server.add_generic_rpc_handlers([_Router(self)])
        credentials = grpc.ssl_server_credentials([self.authority.issue()])
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(30)

    # ---- answering ----------------------------------------------------------------------------------------------------

    async def admit(self, method: str, request: Any, context: Any) -> None:
        """Keep the request; refuse what is not permitted or what the test wants refused."""
        self.calls[method].append(request)
        authorization = dict(tuple(context.invocation_metadata())).get("authorization", "")
        try:
            if authorization != f"Bearer {TOKEN}":
                raise Refused("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED, {})
            if self._refusals[method]:
                raise self._refusals[method].popleft()
        except Refused as refused:
            await abort(context, refused)

    def reply(self, method: str) -> Callable[[Any], Any]:
        return {
            "GetVersion": lambda _: system_calls.GetVersionResponse(
                version="0.1.0",
                installation_id="installation",
                protocol_version=1,
                token_name="admin",
                token_scope=access_token_pb2.ACCESS_SCOPE_ADMIN,
            ),
            "GetRecovery": lambda _: system_calls.GetRecoveryResponse(
                storage_id=rows.NAS,
                storage_name="vault",
                newest=system_calls.RecoveryBundle(
                    bundle_id=rows.JOB, create_time=rows.ago(hours=2), hypervisor_id="kvm1", stored_bytes=204_800
                ),
                epoch=2,
                blocked_storages=[system_calls.BlockedStorage(storage_id=rows.NAS, name="vault")],
            ),
            "GetCapabilities": lambda _: system_calls.GetCapabilitiesResponse(
                storage_types=[
                    system_calls.StorageTypeCapabilities(
                        type="local", capabilities=storage_pb2.StorageCapabilities(usage=True)
                    ),
                    system_calls.StorageTypeCapabilities(
                        type="s3",
                        capabilities=storage_pb2.StorageCapabilities(
                            resume=True, depends_on_server=["exclusive_create"]
                        ),
                    ),
                ]
            ),
            "ListHypervisors": lambda _: hypervisor_calls.ListHypervisorsResponse(hypervisors=self.hypervisors),
            "GetHypervisor": lambda r: hypervisor_calls.GetHypervisorResponse(hypervisor=self._hypervisor(r)),
            "BanHypervisor": lambda r: hypervisor_calls.BanHypervisorResponse(hypervisor=self._hypervisor(r)),
            "UnbanHypervisor": lambda r: hypervisor_calls.UnbanHypervisorResponse(hypervisor=self._hypervisor(r)),
            "ListDomains": lambda _: hypervisor_calls.ListDomainsResponse(
                domains=self.domains, report_time=rows.ago(seconds=20)
            ),
            "CreateEnrollmentToken": lambda _: hypervisor_calls.CreateEnrollmentTokenResponse(
                token=ENROLLMENT_TOKEN, expire_time=rows.ago(minutes=-59.5), hypervisor_id=rows.HV1
            ),
            "RegisterServer": lambda _: server_calls.RegisterServerResponse(server=self.servers[0]),
            "ListServers": lambda _: server_calls.ListServersResponse(servers=self.servers),
            "GetServer": lambda r: server_calls.GetServerResponse(server=self._server_of(r)),
            "UpdateServer": lambda r: server_calls.UpdateServerResponse(
                server=self._updated(self._server_of(r.server), r)
            ),
            "DeleteServer": lambda r: server_calls.DeleteServerResponse(server=self._server_of(r)),
            "ListStorages": lambda _: storage_calls.ListStoragesResponse(storages=self.storages),
            "GetStorage": lambda r: storage_calls.GetStorageResponse(storage=self._storage(r)),
            "CreateStorage": lambda r: storage_calls.CreateStorageResponse(
                storage=storage_pb2.Storage(storage_id=rows.NAS, name=r.name, enabled=True)
            ),
            "UpdateStorage": lambda r: storage_calls.UpdateStorageResponse(storage=self._storage(r.storage)),
            "DeleteStorage": lambda _: storage_calls.DeleteStorageResponse(revoked_ticket_count=1),
            "ProbeStorage": lambda _: storage_calls.ProbeStorageResponse(job_id=rows.JOB),
            "TestStorage": lambda _: storage_calls.TestStorageResponse(job_id=rows.JOB),
            "ReindexStorage": lambda _: storage_calls.ReindexStorageResponse(job_id=rows.JOB),
            "ReconcileStorage": lambda _: storage_calls.ReconcileStorageResponse(job_id=rows.JOB),
            "ExportStorageKey": lambda r: storage_calls.ExportStorageKeyResponse(
                storage=self._storage(r),
                keys=[storage_calls.WrappedKey(key_id="k1", text="backup-manager key 1\n{}\n", sha256="ab")],
            ),
            "CheckStorage": lambda _: storage_calls.CheckStorageResponse(job_id=rows.JOB),
            "ListStorageChecks": lambda _: storage_calls.ListStorageChecksResponse(
                checks=[storage_pb2.StorageCheck(hypervisor_name="kvm1", state=storage_pb2.HEALTH_STATE_HEALTHY)]
            ),
            "ListServerUsages": lambda _: storage_calls.ListServerUsagesResponse(),
            "ListBackupChains": lambda _: backup_calls.ListBackupChainsResponse(chains=self.chains),
            "GetOverview": lambda _: overview_calls.GetOverviewResponse(overview=self.overview),
            "DiagnoseServer": lambda _: overview_calls.DiagnoseServerResponse(
                server_name="web1", will_be_backed_up=True, summary="nothing stands in the way"
            ),
            "StartBackup": lambda _: backup_calls.StartBackupResponse(job_id=rows.JOB),
            "ListBackups": self._list_backups,
            "GetBackup": lambda r: backup_calls.GetBackupResponse(backup=self._backup(r.backup_id)),
            "PreviewRestore": lambda r: backup_calls.PreviewRestoreResponse(
                backup=self._backup(r.backup_id or rows.INCREMENTAL),
                disks=["vda"],
                stops_server=True,
                chain_backup_ids=[rows.FULL, rows.INCREMENTAL],
                confirmation="confirmed",
            ),
            "StartRestore": lambda _: backup_calls.StartRestoreResponse(job_id=rows.JOB),
            "StartVerify": lambda _: backup_calls.StartVerifyResponse(job_id=rows.JOB),
            "CreateRestoreTicket": lambda _: backup_calls.CreateRestoreTicketResponse(job_id=rows.JOB),
            "ListTickets": lambda _: ticket_calls.ListTicketsResponse(tickets=self.tickets),
            "RevokeTicket": self._revoke_ticket,
            "PreviewDelete": lambda _: backup_calls.PreviewDeleteResponse(
                backups=self.backups,
                stored_bytes=sum(one.stored_bytes for one in self.backups),
                confirmation="confirmed",
            ),
            "StartDelete": lambda _: backup_calls.StartDeleteResponse(job_id=rows.JOB),
            "ListJobs": lambda _: job_calls.ListJobsResponse(jobs=list(self.jobs.values())),
            "GetJob": lambda r: job_calls.GetJobResponse(job=self._job(r)),
            "CancelJob": lambda r: job_calls.CancelJobResponse(job=self._job(r)),
            "ListJobLogEntries": self._list_log,
            "CreateAccessToken": lambda r: token_calls.CreateAccessTokenResponse(
                access_token=access_token_pb2.AccessToken(name=r.name, scope=r.scope), secret=NEW_TOKEN
            ),
            "ListAccessTokens": lambda _: token_calls.ListAccessTokensResponse(access_tokens=self.tokens),
            "RevokeAccessToken": lambda r: token_calls.RevokeAccessTokenResponse(
                access_token=access_token_pb2.AccessToken(
                    access_token_id=r.access_token_id, name="admin", revoke_time=rows.ago(seconds=0)
                )
            ),
        }[method]

    async def poll(self, request: job_calls.PollJobRequest) -> job_calls.PollJobResponse:
        job = self._job(request)
        async with self._changed:
            try:
                async with asyncio.timeout(request.wait.ToTimedelta().total_seconds()):
                    await self._changed.wait_for(lambda: job.version > request.cursor)
            except TimeoutError:
                pass
        return job_calls.PollJobResponse(job=job)

    async def watch(self, request: job_calls.WatchJobRequest, context: Any) -> AsyncIterator[Any]:
        if not self.watchable:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no streams here")
        job, seen, broken = self._job(request), {"cursor": request.cursor}, asyncio.Event()
        self._watchers.add(broken)
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: job.version > seen["cursor"] or broken.is_set())
                if broken.is_set():
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
                seen["cursor"] = job.version
                yield job_calls.WatchJobResponse(job=job)
                if job.state in _ENDED:
                    return
        finally:
            self._watchers.discard(broken)

    def _list_backups(self, request: Any) -> Any:
        """Page by the position in the list, so that paging is real."""
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        token = str(end) if end < len(self.backups) else ""
        return backup_calls.ListBackupsResponse(backups=self.backups[start:end], next_page_token=token)

    def _revoke_ticket(self, request: Any) -> Any:
        found = next((one for one in self.tickets if one.ticket_id == request.ticket_id), None)
        if found is None:
            raise Refused("TICKET_NOT_FOUND", grpc.StatusCode.NOT_FOUND, {"ticket_id": request.ticket_id})
        found.state = ticket_pb2.RESTORE_TICKET_STATE_REVOKING
        return ticket_calls.RevokeTicketResponse(ticket=found)

    def _list_log(self, request: Any) -> Any:
        start = int(request.page_token or 0)
        job = self._job(request)
        end = len(self.log)
        token = "" if job.state in _ENDED else str(end)
        return job_calls.ListJobLogEntriesResponse(entries=self.log[start:end], next_page_token=token)

    def _hypervisor(self, request: Any) -> Any:
        return _find(self.hypervisors, "hypervisor_id", request.hypervisor_id, "HYPERVISOR_NOT_FOUND")

    def _server_of(self, request: Any) -> Any:
        return _find(self.servers, "server_id", request.server_id, "SERVER_NOT_FOUND")

    def _storage(self, request: Any) -> Any:
        return _find(self.storages, "storage_id", request.storage_id, "STORAGE_NOT_FOUND")

    def _backup(self, backup_id: str) -> Any:
        return _find(self.backups, "backup_id", backup_id, "BACKUP_NOT_FOUND")

    def _job(self, request: Any) -> Any:
        return _find(list(self.jobs.values()), "job_id", request.job_id, "JOB_NOT_FOUND")

    def _updated(self, server: server_pb2.Server, request: Any) -> server_pb2.Server:
        request.update_mask.MergeMessage(request.server, server)
        return server


def completed(**more: Any) -> dict[str, Any]:
    """Return the fields of a job that ended well just now, after 12 seconds."""
    return {
        "state": job_pb2.JOB_STATE_COMPLETED,
        "start_time": rows.ago(seconds=12),
        "end_time": rows.ago(seconds=0),
        **more,
    }


def _find(found: list[Any], field: str, wanted: str, reason: str) -> Any:
    for one in found:
        if wanted == getattr(one, field) or wanted == getattr(one, "name", None):
            return one
    raise Refused(reason, grpc.StatusCode.NOT_FOUND, {field: wanted})


async def abort(context: Any, refused: Refused) -> None:
    """Refuse a call as the controller does: rich details and plain trailers; neither without a reason."""
    if not refused.reason:
        await context.abort(refused.status, "")
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(domain="backupmanager", reason=refused.reason, metadata=refused.facts))
    message = f"the canned controller says {refused.reason}"
    rich = rpc_status.to_status(status_pb2.Status(code=refused.status.value[0], message=message, details=[detail]))
    trailers = (*rich.trailing_metadata, ("backupmanager-reason", refused.reason))
    await context.abort(refused.status, message, trailers)


class _Router(grpc.GenericRpcHandler):
    """Finds an RPC by its descriptor, so that every one of the interface is there without a servicer for each."""

    def __init__(self, canned: Canned) -> None:
        self._canned = canned

    def service(self, handler_call_details: Any) -> Any:
        service, method = handler_call_details.method.lstrip("/").split("/")
        found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
        parse: Any = message_factory.GetMessageClass(found.input_type).FromString
        canned = self._canned

        async def one(request: Any, context: Any) -> Any:
            await canned.admit(method, request, context)
            try:
                return await canned.poll(request) if method == "PollJob" else canned.reply(method)(request)
            except Refused as refused:
                await abort(context, refused)

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            await canned.admit(method, request, context)
            try:
                async for reply in canned.watch(request, context):
                    yield reply
            except Refused as refused:
                await abort(context, refused)

        serialize = lambda reply: reply.SerializeToString()
        if found.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many, parse, serialize)
        return grpc.unary_unary_rpc_method_handler(one, parse, serialize)
