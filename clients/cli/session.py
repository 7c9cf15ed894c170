"""How a verb speaks with the controller: one connection, its stubs, and errors as exceptions.

    def show(server: …, output: …) -> None:
        async def work(controller: Controller) -> None:
            reply = await controller.call(controller.servers.GetServer, GetServerRequest(server_id=server))
            …
        run(work)

Stubs are imported when a verb first uses them: each costs milliseconds that no other verb has to pay.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from clients import errors
from clients.cli import profile as profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from grpc import aio

    from clients.cli.profile import Profile
    from clients.gen.backupmanager.v1.access_token_service_pb2_grpc import AccessTokenServiceStub
    from clients.gen.backupmanager.v1.audit_service_pb2_grpc import AuditServiceStub
    from clients.gen.backupmanager.v1.backup_service_pb2_grpc import BackupServiceStub
    from clients.gen.backupmanager.v1.batch_service_pb2_grpc import BatchServiceStub
    from clients.gen.backupmanager.v1.event_service_pb2_grpc import EventServiceStub
    from clients.gen.backupmanager.v1.hypervisor_service_pb2_grpc import HypervisorServiceStub
    from clients.gen.backupmanager.v1.job_service_pb2_grpc import JobServiceStub
    from clients.gen.backupmanager.v1.overview_service_pb2_grpc import OverviewServiceStub
    from clients.gen.backupmanager.v1.package_service_pb2_grpc import PackageServiceStub
    from clients.gen.backupmanager.v1.preset_service_pb2_grpc import PresetServiceStub
    from clients.gen.backupmanager.v1.purge_service_pb2_grpc import PurgeServiceStub
    from clients.gen.backupmanager.v1.retention_service_pb2_grpc import RetentionServiceStub
    from clients.gen.backupmanager.v1.schedule_service_pb2_grpc import ScheduleServiceStub
    from clients.gen.backupmanager.v1.server_service_pb2_grpc import ServerServiceStub
    from clients.gen.backupmanager.v1.settings_service_pb2_grpc import SettingsServiceStub
    from clients.gen.backupmanager.v1.storage_service_pb2_grpc import StorageServiceStub
    from clients.gen.backupmanager.v1.system_log_service_pb2_grpc import SystemLogServiceStub
    from clients.gen.backupmanager.v1.system_service_pb2_grpc import SystemServiceStub
    from clients.gen.backupmanager.v1.ticket_service_pb2_grpc import TicketServiceStub
    from clients.gen.backupmanager.v1.webhook_service_pb2_grpc import WebhookServiceStub

CALL_SECONDS = 30.0
PAGE_SIZE = 1000  # the most that a list call gives
_DIAGNOSIS_SECONDS = 5.0
Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Controller:
    """The controller as one verb sees it."""

    def __init__(self, link: aio.Channel, profile: Profile) -> None:
        self._link = link
        self.profile = profile

    async def call(self, method: aio.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        """Return a unary call's reply. Raises CallRefused."""
        with errors.translated():
            return await method(request, timeout=CALL_SECONDS)

    async def every(
        self, method: aio.UnaryUnaryMultiCallable[Any, Reply], request: Any, field: str, limit: int = 0
    ) -> tuple[Reply, bool]:
        """Return all pages of a list as one reply (its `field` holds the rows), and whether there are more than `limit`.

        `limit` 0 takes all.
        """
        request.page_size = min(limit or PAGE_SIZE, PAGE_SIZE)
        whole: Any = await self.call(method, request)
        token = whole.next_page_token
        rows = getattr(whole, field)
        while token and (limit == 0 or len(rows) < limit):
            request.page_token = token
            page: Any = await self.call(method, request)
            rows.extend(getattr(page, field))
            token = page.next_page_token
        more = bool(token) or 0 < limit < len(rows)
        if limit:
            del rows[limit:]
        whole.next_page_token = ""
        return whole, more

    @cached_property
    def system(self) -> SystemServiceStub:
        from clients.gen.backupmanager.v1.system_service_pb2_grpc import SystemServiceStub

        return SystemServiceStub(self._link)

    @cached_property
    def hypervisors(self) -> HypervisorServiceStub:
        from clients.gen.backupmanager.v1.hypervisor_service_pb2_grpc import HypervisorServiceStub

        return HypervisorServiceStub(self._link)

    @cached_property
    def servers(self) -> ServerServiceStub:
        from clients.gen.backupmanager.v1.server_service_pb2_grpc import ServerServiceStub

        return ServerServiceStub(self._link)

    @cached_property
    def retention(self) -> RetentionServiceStub:
        from clients.gen.backupmanager.v1.retention_service_pb2_grpc import RetentionServiceStub

        return RetentionServiceStub(self._link)

    @cached_property
    def purges(self) -> PurgeServiceStub:
        from clients.gen.backupmanager.v1.purge_service_pb2_grpc import PurgeServiceStub

        return PurgeServiceStub(self._link)

    @cached_property
    def tickets(self) -> TicketServiceStub:
        from clients.gen.backupmanager.v1.ticket_service_pb2_grpc import TicketServiceStub

        return TicketServiceStub(self._link)

    @cached_property
    def packages(self) -> PackageServiceStub:
        from clients.gen.backupmanager.v1.package_service_pb2_grpc import PackageServiceStub

        return PackageServiceStub(self._link)

    @cached_property
    def storages(self) -> StorageServiceStub:
        from clients.gen.backupmanager.v1.storage_service_pb2_grpc import StorageServiceStub

        return StorageServiceStub(self._link)

    @cached_property
    def batches(self) -> BatchServiceStub:
        from clients.gen.backupmanager.v1.batch_service_pb2_grpc import BatchServiceStub

        return BatchServiceStub(self._link)

    @cached_property
    def schedules(self) -> ScheduleServiceStub:
        from clients.gen.backupmanager.v1.schedule_service_pb2_grpc import ScheduleServiceStub

        return ScheduleServiceStub(self._link)

    @cached_property
    def presets(self) -> PresetServiceStub:
        from clients.gen.backupmanager.v1.preset_service_pb2_grpc import PresetServiceStub

        return PresetServiceStub(self._link)

    @cached_property
    def settings(self) -> SettingsServiceStub:
        from clients.gen.backupmanager.v1.settings_service_pb2_grpc import SettingsServiceStub

        return SettingsServiceStub(self._link)

    @cached_property
    def backups(self) -> BackupServiceStub:
        from clients.gen.backupmanager.v1.backup_service_pb2_grpc import BackupServiceStub

        return BackupServiceStub(self._link)

    @cached_property
    def jobs(self) -> JobServiceStub:
        from clients.gen.backupmanager.v1.job_service_pb2_grpc import JobServiceStub

        return JobServiceStub(self._link)

    @cached_property
    def events(self) -> EventServiceStub:
        from clients.gen.backupmanager.v1.event_service_pb2_grpc import EventServiceStub

        return EventServiceStub(self._link)

    @cached_property
    def system_log(self) -> SystemLogServiceStub:
        from clients.gen.backupmanager.v1.system_log_service_pb2_grpc import SystemLogServiceStub

        return SystemLogServiceStub(self._link)

    @cached_property
    def audit(self) -> AuditServiceStub:
        from clients.gen.backupmanager.v1.audit_service_pb2_grpc import AuditServiceStub

        return AuditServiceStub(self._link)

    @cached_property
    def webhooks(self) -> WebhookServiceStub:
        from clients.gen.backupmanager.v1.webhook_service_pb2_grpc import WebhookServiceStub

        return WebhookServiceStub(self._link)

    @cached_property
    def overview(self) -> OverviewServiceStub:
        from clients.gen.backupmanager.v1.overview_service_pb2_grpc import OverviewServiceStub

        return OverviewServiceStub(self._link)

    @cached_property
    def tokens(self) -> AccessTokenServiceStub:
        from clients.gen.backupmanager.v1.access_token_service_pb2_grpc import AccessTokenServiceStub

        return AccessTokenServiceStub(self._link)


def run(work: Callable[[Controller], Coroutine[Any, Any, None]], profile: Profile | None = None) -> None:
    """Do a verb's work over one connection, with the saved profile unless another is given.

    Raises CallRefused, AuthorityChanged, NotLoggedIn, and what the work raises.
    """
    import asyncio

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines about a failed handshake would stand between ours
    profile = profile or profiles.load()
    try:
        asyncio.run(_connected(work, profile))
    except errors.CallRefused as error:
        if error.reason == "CONTROLLER_UNREACHABLE":
            _diagnose(profile)
        raise


async def _connected(work: Callable[[Controller], Coroutine[Any, Any, None]], profile: Profile) -> None:
    from clients import connect

    async with connect.channel(profile.address, profile.authority, token=profile.token) as link:
        await work(Controller(link, profile))


def _diagnose(profile: Profile) -> None:
    """Raise AuthorityChanged if that is why no connection came about: to gRPC it looks like a controller that is down."""
    from clients import connect

    try:
        connect.fetch_authority(profile.address, expected=profile.fingerprint, seconds=_DIAGNOSIS_SECONDS)
    except errors.ControllerUnreachable:
        return
