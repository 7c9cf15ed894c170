"""A running controller: the parts wired together, two listeners, and an orderly end.

    listen        TLS                       API, enrollment, health, reflection
    agent_listen  TLS, client certificate   sessions

    stop:  health says NOT_SERVING ─► new calls are refused ─► watches end ─► sessions write their last receipts and end
           ─► the server stops ─► the tick stops ─► the database writes what is queued and closes

No event is lost by a stop: an event is acknowledged once it is committed, and an agent keeps what was not acknowledged.
"""

import asyncio
import contextlib
import importlib.metadata
import ipaddress
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from clients.gen.backupmanager.agent.v1 import (
    enrollment_service_pb2,
    enrollment_service_pb2_grpc,
    session_service_pb2_grpc,
)
from clients.gen.backupmanager.v1 import (
    access_token_service_pb2,
    access_token_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    backup_service_pb2,
    backup_service_pb2_grpc,
    batch_service_pb2,
    batch_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    overview_service_pb2,
    overview_service_pb2_grpc,
    package_service_pb2,
    package_service_pb2_grpc,
    portal_service_pb2,
    portal_service_pb2_grpc,
    preset_service_pb2,
    preset_service_pb2_grpc,
    purge_service_pb2,
    purge_service_pb2_grpc,
    retention_service_pb2,
    retention_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
    settings_service_pb2,
    settings_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
    system_log_service_pb2,
    system_log_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
    ticket_service_pb2,
    ticket_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from controller import installation, set_back, totals
from controller.addresses import join_address, split_address
from controller.agents.ownership import Ownership
from controller.agents.sessions import Sessions
from controller.audit import Audit
from controller.bundler import Bundler
from controller.changes import Changes
from controller.clock import Clock, SystemClock
from controller.config import Settings
from controller.courier import Courier
from controller.cycle import turn
from controller.cycle.steps import STEPS
from controller.cycle.tick import Tick
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import CannotStart
from controller.files import write_json
from controller.limits import Limits
from controller.security.authority import Authority
from controller.security.identity import Identity
from controller.security.interceptors import Chain
from controller.services.access_tokens import AccessTokenServicer
from controller.services.audit import AuditServicer
from controller.services.backups import BackupServicer
from controller.services.batches import BatchServicer
from controller.services.enrollment import EnrollmentServicer
from controller.services.events import EventServicer
from controller.services.hypervisors import HypervisorServicer
from controller.services.jobs import JobServicer
from controller.services.overview import OverviewServicer
from controller.services.packages import PackageServicer
from controller.services.parts import Parts
from controller.services.portal import PortalServicer
from controller.services.presets import PresetServicer
from controller.services.purges import PurgeServicer
from controller.services.retentions import RetentionServicer
from controller.services.schedules import ScheduleServicer
from controller.services.servers import ServerServicer
from controller.services.session import SessionServicer
from controller.services.settings import SettingsServicer
from controller.services.storages import StorageServicer
from controller.services.system import SystemServicer
from controller.services.system_log import SystemLogServicer
from controller.services.tickets import TicketServicer
from controller.services.webhooks import WebhookServicer
from engine.units import MIB

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = MIB  # both ways (N9)
STOP_SECONDS = 2.0  # for calls under way; the longest makes a storage key, in 0.1 s
MAINTAIN_SECONDS = 3600.0
_PUBLIC = (
    access_token_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    backup_service_pb2.DESCRIPTOR,
    event_service_pb2.DESCRIPTOR,
    hypervisor_service_pb2.DESCRIPTOR,
    job_service_pb2.DESCRIPTOR,
    preset_service_pb2.DESCRIPTOR,
    batch_service_pb2.DESCRIPTOR,
    purge_service_pb2.DESCRIPTOR,
    retention_service_pb2.DESCRIPTOR,
    schedule_service_pb2.DESCRIPTOR,
    package_service_pb2.DESCRIPTOR,
    portal_service_pb2.DESCRIPTOR,
    overview_service_pb2.DESCRIPTOR,
    server_service_pb2.DESCRIPTOR,
    settings_service_pb2.DESCRIPTOR,
    storage_service_pb2.DESCRIPTOR,
    system_log_service_pb2.DESCRIPTOR,
    system_service_pb2.DESCRIPTOR,
    ticket_service_pb2.DESCRIPTOR,
    webhook_service_pb2.DESCRIPTOR,
    enrollment_service_pb2.DESCRIPTOR,
)
PUBLIC_SERVICES = tuple(service.full_name for file in _PUBLIC for service in file.services_by_name.values())

# Bytes of a TLS record that we send; gRPC holds a buffer of this size for each connection, of 16 KiB by default.
RECORD_BYTES_MAX = 2048

# Our clients ping every 20 s; a peer that pings more often than the least interval is sent away. A frozen peer is noticed
# only by ping_timeout_ms, a vanished one by keepalive_timeout_ms.
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.tsi.max_frame_size", RECORD_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second controller on the same port is a mistake, and must not share it in silence
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that were opened."""

    api: int
    agents: int


class Controller:
    """One controller in this event loop: `start`, then `stop`. Holds the database from one to the other."""

    def __init__(
        self, settings: Settings, clock: Clock | None = None, maintain_seconds: float = MAINTAIN_SECONDS
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._maintain_seconds = maintain_seconds
        self._cleanup = contextlib.AsyncExitStack()

    async def start(self) -> Ports:
        """Open everything and serve. Raises CannotStart; nothing is left open then."""
        async with contextlib.AsyncExitStack() as stack:
            ports = await self._open(stack)
            self._cleanup = stack.pop_all()
        return ports

    async def stop(self) -> None:
        """End in order; see the module's picture."""
        await self._cleanup.aclose()

    @property
    def authority(self) -> Authority:
        return self._parts.authority

    async def _open(self, stack: contextlib.AsyncExitStack) -> Ports:
        settings, clock = self._settings, self._clock
        authority = load_authority(settings, clock)
        vault = Vault.load(settings.master_key_file)
        database = await asyncio.to_thread(Database.open, settings.database_url)
        stack.push_async_callback(asyncio.to_thread, database.close)
        await database.run(installation.get)
        await database.run(set_back.check_mark, settings.mark_file, limits_of(settings), clock.now())
        known = await database.run(installation.get)
        await database.run(totals.recount_all)
        changes = Changes()
        database.subscribe(changes.publish)
        limits, version = (
            replace(limits_of(settings), listening_since=clock.now()),
            importlib.metadata.version("backup-manager"),
        )
        networks = tuple(ipaddress.ip_network(one) for one in settings.webhook_networks)
        courier = Courier(database, vault, clock, changes, networks, version)
        tick = Tick(database, vault, clock, lambda: limits, settings.tick_seconds, STEPS)
        if database.exclusive:
            await database.run(turn.clear, all_turns=True)  # of a controller that was killed; nobody waits for those
        ownership = Ownership(database)
        stack.push_async_callback(ownership.stop)
        await ownership.start()
        sessions = Sessions(database, vault, clock, limits, changes, known, ownership, version)
        parts = Parts(database, vault, clock, limits, authority, known, changes, sessions, version, courier, networks)
        self._parts = parts

        chain = Chain(Identity(database, clock), Audit(database, clock), clock)
        server = aio.server(interceptors=[chain], options=_OPTIONS)
        health = HealthServicer()
        enrollment = EnrollmentServicer(parts)
        _add_services(server, parts, health, enrollment)
        ports = Ports(
            _listen(server, settings.listen, authority, client_certificates=False),
            _listen(server, settings.agent_listen, authority, client_certificates=True),
        )
        enrollment.session_port = ports.agents
        for name in PUBLIC_SERVICES:
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)

        stack.push_async_callback(tick.stop)
        tick.start()
        bundler = Bundler(settings, database, vault, clock, lambda: limits)
        bundling = asyncio.create_task(bundler.run(settings.tick_seconds), name="bundle")
        stack.push_async_callback(_cancel, bundling)
        stack.push_async_callback(courier.stop)
        courier.start()
        mark = asyncio.create_task(set_back.keep_mark(database, settings.mark_file), name="mark")
        stack.push_async_callback(_cancel, mark)
        maintenance = asyncio.create_task(_maintain(authority, clock, self._maintain_seconds), name="authority")
        stack.push_async_callback(_cancel, maintenance)
        stack.push_async_callback(server.stop, STOP_SECONDS)
        await server.start()
        stack.push_async_callback(_say_goodbye, health, chain, changes, sessions)
        self._tell_ports(ports)
        stack.callback(settings.ports_file.unlink, missing_ok=True)
        return ports

    def _tell_ports(self, ports: Ports) -> None:
        write_json(self._settings.ports_file, {"api": ports.api, "agents": ports.agents, "pid": os.getpid()})
        api, agents = (
            join_address(split_address(address)[0], port)
            for address, port in ((self._settings.listen, ports.api), (self._settings.agent_listen, ports.agents))
        )
        log.info("controller serves api=%s agents=%s authority=%s", api, agents, self._parts.authority.fingerprint)


def limits_of(settings: Settings) -> Limits:
    """Return the numbers that rules go by."""
    return Limits(
        heartbeat_seconds=settings.heartbeat_seconds,
        command_accept_seconds=settings.command_accept_seconds,
    )


def load_authority(settings: Settings, clock: Clock) -> Authority:
    """Return the authority of the state folder. Raises CannotStart."""
    try:
        return Authority.load(settings.authority_folder, settings.host_names, clock.now())
    except FileNotFoundError as error:
        raise CannotStart(f"no authority in {settings.authority_folder}; run bm-controller init first") from error
    except (OSError, ValueError) as error:
        raise CannotStart(f"the authority in {settings.authority_folder} cannot be used: {error}") from error


def _add_services(server: aio.Server, parts: Parts, health: HealthServicer, enrollment: EnrollmentServicer) -> None:
    hypervisor_service_pb2_grpc.add_HypervisorServiceServicer_to_server(HypervisorServicer(parts), server)
    overview_service_pb2_grpc.add_OverviewServiceServicer_to_server(OverviewServicer(parts), server)
    server_service_pb2_grpc.add_ServerServiceServicer_to_server(ServerServicer(parts), server)
    package_service_pb2_grpc.add_PackageServiceServicer_to_server(PackageServicer(parts), server)
    portal_service_pb2_grpc.add_PortalServiceServicer_to_server(PortalServicer(parts), server)
    storage_service_pb2_grpc.add_StorageServiceServicer_to_server(StorageServicer(parts), server)
    preset_service_pb2_grpc.add_PresetServiceServicer_to_server(PresetServicer(parts), server)
    batch_service_pb2_grpc.add_BatchServiceServicer_to_server(BatchServicer(parts), server)
    purge_service_pb2_grpc.add_PurgeServiceServicer_to_server(PurgeServicer(parts), server)
    retention_service_pb2_grpc.add_RetentionServiceServicer_to_server(RetentionServicer(parts), server)
    schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleServicer(parts), server)
    settings_service_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsServicer(parts), server)
    backup_service_pb2_grpc.add_BackupServiceServicer_to_server(BackupServicer(parts), server)
    ticket_service_pb2_grpc.add_TicketServiceServicer_to_server(TicketServicer(parts), server)
    event_service_pb2_grpc.add_EventServiceServicer_to_server(EventServicer(parts), server)
    system_log_service_pb2_grpc.add_SystemLogServiceServicer_to_server(SystemLogServicer(parts), server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(parts), server)
    webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server(WebhookServicer(parts), server)
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(parts), server)
    access_token_service_pb2_grpc.add_AccessTokenServiceServicer_to_server(AccessTokenServicer(parts), server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(SystemServicer(parts), server)
    enrollment_service_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrollment, server)
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(parts), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((*PUBLIC_SERVICES, reflection.SERVICE_NAME), server)


def _listen(server: aio.Server, address: str, authority: Authority, *, client_certificates: bool) -> int:
    """Open a listener and return its port. Raises CannotStart."""
    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(authority, client_certificates=client_certificates)[1],
        _reloader(authority, client_certificates=client_certificates),  # type: ignore[arg-type]  # None means no change
        require_client_authentication=client_certificates,
    )
    try:
        return server.add_secure_port(join_address(*split_address(address)), credentials)
    except RuntimeError as error:
        raise CannotStart(f"cannot listen on {address}: is another program there?") from error


def _configuration(
    authority: Authority, *, client_certificates: bool
) -> tuple[int, grpc.ServerCertificateConfiguration]:
    version, pair, roots = authority.snapshot()
    made = grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.chain)], root_certificates=roots if client_certificates else None
    )
    return version, made


def _reloader(
    authority: Authority, *, client_certificates: bool
) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return what grpc asks at each handshake, on a thread of its own: None, or a new certificate once there is one."""
    served = authority.version

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        if served == authority.version:
            return None
        served, configuration = _configuration(authority, client_certificates=client_certificates)
        return configuration

    return fetch


async def _maintain(authority: Authority, clock: Clock, seconds: float) -> None:
    """Renew certificates when they are due, for ever. A failure is tried again, months before it matters."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if await asyncio.to_thread(authority.maintain, clock.now()):
                log.info("certificates renewed expires=%s", authority.server_expire_time)
        except Exception:
            log.exception("certificates could not be renewed expires=%s", authority.server_expire_time)
        left = authority.server_expire_time - clock.now()
        if left < timedelta(days=30):
            log.warning("the server certificate ends soon expires=%s", authority.server_expire_time)


async def _say_goodbye(health: HealthServicer, chain: Chain, changes: Changes, sessions: Sessions) -> None:
    log.info("controller stops")
    await health.enter_graceful_shutdown()
    chain.stopping = True
    changes.close()
    await sessions.stop()


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
