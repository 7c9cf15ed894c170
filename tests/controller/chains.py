"""Histories in the catalog, made at once: backups whose times and chains a test chooses."""

from datetime import datetime, timedelta
from typing import Any

from controller import backups
from controller.backups import BackupFilter, BackupRecord, DiskBackup
from controller.servers import Server
from controller.storages import Storage
from engine.ids import new_id
from tests.controller.world import Agent, World

DAY = timedelta(days=1)


def put(
    world: World,
    agent: Agent,
    server: Server,
    storage: Storage,
    time: datetime,
    needs: tuple[str, ...] = (),
    kind: str = "",
    **values: Any,
) -> str:
    """Put a backup of one disk into the catalog and return its id; a full, or what goes on with the chain of `needs`."""
    backup_id = new_id(time)
    kind = kind or ("incremental" if needs else "full")
    chain = needs[0] if needs else backup_id
    disk = DiskBackup("vda", kind, "" if kind == "copy" else chain, needs[-1] if needs else "", 1000, 100, 50, "ab")
    record = BackupRecord(
        backup_id=backup_id,
        server_id=server.server_id,
        job_id="",
        create_time=time,
        disks=(disk,),
        manifest_digest="d" * 64,
        needed_backup_ids=(*needs, backup_id),
        **values,
    )
    world.run(backups.record, record, storage.storage_id, agent.hypervisor_id, time)
    return backup_id


def put_chain(world: World, agent: Agent, server: Server, storage: Storage, start: datetime, length: int) -> list[str]:
    """Put a chain of daily backups into the catalog and return their ids, the full first."""
    ids: list[str] = []
    for number in range(length):
        ids.append(put(world, agent, server, storage, start + DAY * number, tuple(ids)))
    return ids


def put_chains(
    world: World, agent: Agent, server: Server, storage: Storage, count: int, length: int = 7
) -> list[list[str]]:
    """Put chains, oldest first, one after the other, up to an hour ago."""
    now = world.clock.time - timedelta(hours=1) - DAY * (length - 1)
    return [
        put_chain(world, agent, server, storage, now - DAY * length * (count - 1 - number), length)
        for number in range(count)
    ]


def left(world: World, server: Server) -> set[str]:
    """Return the backups of a server that the catalog has."""
    return {one.backup_id for one in world.run(backups.list_backups, BackupFilter(server.server_id), limit=10_000)}
