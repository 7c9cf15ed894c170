"""An installation that has something in every part which a recovery bundle promises, and what of it must be the same afterwards.

fill(world, …)      owner, lock, level, package, rival, schedules, settings, tokens, webhook, banned host, deleted server
rows(state folder)  the tables as they lie in SQLite: what nothing else compares is compared here, column by column
shown(world)        the same as every reader of the API sees it
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    access_token_pb2,
    access_token_service_pb2,
    backup_service_pb2,
    disk_pb2,
    hypervisor_service_pb2,
    package_service_pb2,
    retention_pb2,
    schedule_pb2,
    schedule_service_pb2,
    server_pb2,
    server_service_pb2,
    settings_pb2,
    settings_service_pb2,
    storage_pb2,
    storage_service_pb2,
    webhook_service_pb2,
)
from controller import rescue
from tests.controller.services.api import Api
from tests.e2e.world import HYPERVISOR, World
from tests.servers.station import Station, domain

if TYPE_CHECKING:
    from google.protobuf.message import Message

SECRET = "a secret that signs what a webhook is told"
_OF_THIS_LIFE: Mapping[str, frozenset[str]] = {
    "installation": frozenset({"epoch", "epoch_time", "mark"}),
    "access_token": frozenset({"last_use_time"}),
    "hypervisor": frozenset(
        {
            "session_id", "session_count", "last_contact_time", "inventory_time", "greeted_epoch", "load",
            "scratch_free_bytes", "clock_offset_microseconds",
        }
    ),
    "webhook": frozenset({"cursor", "success_time", "delivered_count"}),
}  # fmt: skip
"""Columns that begin anew in a restored database, or change with every sign of life; all others are as they were."""
_STANDING: Mapping[str, frozenset[str]] = {
    "hypervisors": frozenset({"state", "lastContactTime", "clockOffset", "load", "scratchFreeBytes"}),
    "storages": frozenset({"health", "usage"}),
    "tokens": frozenset({"lastUseTime"}),
    "webhooks": frozenset({"successTime", "deliveredCount", "waitingCount"}),
}
"""Fields of the API that only say how things stand just now."""


@dataclass(frozen=True)
class Tokens:
    """Secrets of tokens that were made: one of a viewer, and one of a customer."""

    viewer: str
    portal: str


async def fill(world: World, server_id: str, storage_id: str, hook: str) -> Tokens:
    """Give the installation something of everything; `hook` is where a webhook sends to. The dispatcher is paused."""
    api = Api(world._channel)  # the services that a World has no line for
    await _settings(api)
    await _servers(world, api, server_id)
    await _schedules(api, storage_id)
    await api.webhooks.CreateWebhook(
        webhook_service_pb2.CreateWebhookRequest(name="panel", url=hook, kinds=["job."], secret=SECRET)
    )
    viewer = await api.tokens.CreateAccessToken(
        access_token_service_pb2.CreateAccessTokenRequest(
            name="eyes", scope=access_token_pb2.ACCESS_SCOPE_VIEWER, lifetime=Duration(seconds=86_400)
        )
    )
    portal = await api.tokens.CreatePortalToken(
        access_token_service_pb2.CreatePortalTokenRequest(server_ids=[server_id])
    )
    return Tokens(viewer.secret, portal.secret)


async def _settings(api: Api) -> None:
    chosen: dict[str, Any] = {
        "dispatch_paused": True, "max_concurrent_batches": 7, "purge_delay_days": 11, "backup_cooldown_minutes": 5,
        "time_zone": "Europe/Lisbon",
    }  # fmt: skip
    await choose(api, **chosen)


async def choose(api: Api, **chosen: Any) -> None:
    """Change global settings."""
    request = settings_service_pb2.UpdateSettingsRequest(
        settings=settings_pb2.Settings(**chosen), update_mask=FieldMask(paths=list(chosen))
    )
    await api.settings.UpdateSettings(request)


async def _servers(world: World, api: Api, server_id: str) -> None:
    """An owner, a package, a level, a lock, a rival that was refused, a banned hypervisor, and a server that was deleted."""
    full, view = access_level_pb2.ACCESS_LEVEL_FULL_ACCESS, access_level_pb2.ACCESS_LEVEL_VIEW_AND_RESTORE
    package = package_service_pb2.CreatePackageRequest(name="large", default_level=full)
    package_id = (await api.packages.CreatePackage(package)).package.package_id
    servers = api.servers
    await servers.SetServerOwner(server_service_pb2.SetServerOwnerRequest(server_id=server_id, owner="alice"))
    await servers.SetServerPackage(
        server_service_pb2.SetServerPackageRequest(server_id=server_id, package_id=package_id)
    )
    await servers.SetServerAccess(server_service_pb2.SetServerAccessRequest(server_id=server_id, level=view))
    rival = await Station.enroll(world.controller, "kvm2")
    own = (await servers.GetServer(server_service_pb2.GetServerRequest(server_id=server_id))).server
    twin = domain(own.domain_name)
    twin.domain_uuid = own.domain_uuid
    async with rival.session() as session:
        await session.report([twin])
        idle = await api.make_server(HYPERVISOR, external_id="panel-7", name="idle", commissioned=False)
        lock = server_service_pb2.SetServerLockRequest(
            server_id=idle.server_id, reason="rescue", lifetime=Duration(seconds=7200)
        )
        await servers.SetServerLock(lock)
        gone = await api.make_server("kvm2", external_id="panel-8", name="gone")
        await servers.DeleteServer(server_service_pb2.DeleteServerRequest(server_id=gone.server_id))
        update = server_service_pb2.UpdateServerRequest(
            server=server_pb2.Server(server_id=server_id, hypervisor_id=HYPERVISOR, name="shop"),
            update_mask=FieldMask(paths=["hypervisor_id", "name"]),
        )
        await servers.UpdateServer(update)  # the panel's word: it lives here, whatever the rival says
    await Station.enroll(world.controller, "kvm3")
    await api.hypervisors.BanHypervisor(hypervisor_service_pb2.BanHypervisorRequest(hypervisor_id="kvm3"))


async def _schedules(api: Api, storage_id: str) -> None:
    """A schedule with overrides, one that was deleted, and a storage with a policy, limits and defaults that nobody uses."""
    days = schedule_pb2.ScheduleOverrides(
        interval_hours=12,
        consistency=disk_pb2.CONSISTENCY_MODE_PAUSE,
        window=storage_pb2.TimeWindow(start="22:00", end="05:30"),
        allowed_days=storage_pb2.AllowedDays(days=[storage_pb2.WEEKDAY_MONDAY, storage_pb2.WEEKDAY_FRIDAY]),
        keep_last=5,
    )
    level = access_level_pb2.ACCESS_LEVEL_SCHEDULED_ONLY
    for name, overrides in ((HYPERVISOR, days), ("kvm2", schedule_pb2.ScheduleOverrides(interval_hours=0))):
        made = await api.schedules.CreateSchedule(
            schedule_service_pb2.CreateScheduleRequest(
                hypervisor_id=name, storage_id=storage_id, default_access=level, time_zone="Asia/Tokyo",
                overrides=overrides,
            )
        )  # fmt: skip
    await api.schedules.DeleteSchedule(
        schedule_service_pb2.DeleteScheduleRequest(schedule_id=made.schedule.schedule_id)
    )
    await api.make_storage(
        "spare",
        retention=retention_pb2.RetentionPolicy(preset="gfs-3m"),
        keep_last=3,
        limits=storage_pb2.StorageLimits(worker_threads=2, bandwidth_bytes_per_second=5_000_000),
        defaults=storage_pb2.StorageDefaults(backup_concurrency=2),
        compression=storage_pb2.Compression(enabled=True, level=9, threads=2),
        delete_hypervisor_id=HYPERVISOR,
    )


def rows(state: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every table that a bundle has, in an order of its own, without what begins anew in each life of a controller."""
    found = {}
    with closing(sqlite3.connect(f"file:{state}/controller.db?mode=ro", uri=True)) as connection:
        for table in (rescue._name(one) for one in rescue.TABLES):
            cursor = connection.execute(f'SELECT * FROM "{table}"')  # a name of ours
            names = [column[0] for column in cursor.description]
            dropped = _OF_THIS_LIFE.get(table, frozenset())
            lines = [dict(zip(names, line, strict=True)) for line in cursor]
            found[table] = sorted(({key: one[key] for key in one.keys() - dropped} for one in lines), key=_order)
    return found


def _order(row: Mapping[str, Any]) -> str:
    return repr(sorted(row.items()))


async def shown(world: World) -> dict[str, Any]:
    """Return every resource that a bundle promises, as the API has it, without what only says how things stand now."""
    api = Api(world._channel)
    lists: dict[str, tuple[Any, Message]] = {
        "servers": (api.servers.ListServers, server_service_pb2.ListServersRequest(include_deleted=True)),
        "packages": (api.packages.ListPackages, package_service_pb2.ListPackagesRequest()),
        "storages": (api.storages.ListStorages, storage_service_pb2.ListStoragesRequest()),
        "schedules": (api.schedules.ListSchedules, schedule_service_pb2.ListSchedulesRequest()),
        "deleted schedules": (api.schedules.ListSchedules, schedule_service_pb2.ListSchedulesRequest(deleted=True)),
        "webhooks": (api.webhooks.ListWebhooks, webhook_service_pb2.ListWebhooksRequest()),
        "tokens": (api.tokens.ListAccessTokens, access_token_service_pb2.ListAccessTokensRequest()),
        "hypervisors": (api.hypervisors.ListHypervisors, hypervisor_service_pb2.ListHypervisorsRequest()),
        "settings": (api.settings.GetSettings, settings_service_pb2.GetSettingsRequest()),
        "backups": (api.backups.ListBackups, backup_service_pb2.ListBackupsRequest()),
    }
    found = {}
    for name, (call, request) in lists.items():
        answer = json_format.MessageToDict(await call(request))
        listed = [one for value in answer.values() if isinstance(value, list) for one in value]
        dropped = _STANDING.get(name, frozenset())
        found[name] = [{key: one[key] for key in one.keys() - dropped} for one in listed or [answer["settings"]]]
    return found
