"""A large installation, written straight into the database of a controller that does not run: by SQL, in seconds.

    seed(state_folder, url, Size(agents=1000, servers_each=50, backups_each=4))

Hypervisors get certificates of the real authority; all share one private key, since making thousands tries nothing of ours. Each
server has chains of a full and three incrementals, one a day, the newest the day before.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent import identity
from clients.connect import ClientCertificate
from controller import storages
from controller.db import models
from controller.db.database import Database
from controller.db.fields import to_microseconds
from controller.db.secrets import Vault
from controller.security.authority import Authority
from controller.storages import NewStorage
from engine.ids import new_id

CHAIN = 4  # points
DUE = timedelta(hours=1)  # until all schedules are due
_ROWS = 500  # of one statement


@dataclass(frozen=True, slots=True)
class Size:
    """How many there are of each."""

    agents: int
    servers_each: int = 0
    backups_each: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A hypervisor of the fleet, with what its agent shows."""

    hypervisor_id: str
    name: str
    certificate: ClientCertificate
    server_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was made. Everything lies on one storage."""

    hosts: tuple[Host, ...]
    storage_id: str


def seed(state: Path, url: str, size: Size) -> Seeded:
    """Fill the database of an initialized state folder; no controller may have it open."""
    now = datetime.now(UTC)
    authority, vault = Authority.load(state / "authority", (), now), Vault.load(state / "master.key")
    database = Database.open(url)
    try:
        place = {"host": "backup.invalid", "port": 22, "username": "bm", "path": "/srv"}
        new = NewStorage("fleet", "sftp", place, retention={"daily": 7, "weekly": 4, "monthly": 3})
        storage_id = database.call(storages.create, new, None, vault, now).storage_id
        hosts, serials = _hosts(authority, size, now)
        database.call(_insert, models.Hypervisor, _hypervisors(hosts, serials, now))
        database.call(_insert, models.Server, _servers(hosts, now))
        database.call(_insert, models.Schedule, _schedules(hosts, storage_id, now))
        for batch in _batched(hosts, 100):
            points = list(_backups(batch, storage_id, size.backups_each, now))
            database.call(_insert, models.Backup, (one.backup for one in points))
            database.call(_insert, models.BackupDisk, (one.disk for one in points))
            database.call(_insert, models.BackupNeed, (need for one in points for need in one.needs))
        database.call(_add_up)
    finally:
        database.close()
    return Seeded(tuple(hosts), storage_id)


def _hosts(authority: Authority, size: Size, now: datetime) -> tuple[list[Host], list[str]]:
    key, request = identity.make_request()
    hosts, serials = [], []
    for number in range(size.agents):
        hypervisor_id = new_id(now)
        signed = authority.sign_client(request, hypervisor_id, now)
        servers = tuple(new_id(now) for _ in range(size.servers_each))
        certificate = ClientCertificate(key.encode(), signed.certificate.encode())
        hosts.append(Host(hypervisor_id, f"kvm{number:05}", certificate, servers))
        serials.append(signed.serial)
    return hosts, serials


def _hypervisors(hosts: Sequence[Host], serials: Sequence[str], now: datetime) -> Iterator[dict[str, Any]]:
    for host, serial in zip(hosts, serials, strict=True):
        yield {
            "hypervisor_id": host.hypervisor_id,
            "name": host.name,
            "create_time": now,
            "certificate_serial": serial,
            "certificate_expire_time": now + timedelta(days=90),
        }


def _schedules(hosts: Sequence[Host], storage_id: str, now: datetime) -> Iterator[dict[str, Any]]:
    """Every hypervisor has a schedule that is due an hour from now, at the same instant."""
    for host in hosts:
        yield {
            "schedule_id": new_id(now),
            "hypervisor_id": host.hypervisor_id,
            "storage_id": storage_id,
            "enabled": True,
            "default_access": "full_access",
            "due_time": now + DUE,
            "create_time": now,
            "update_time": now,
        }


def _servers(hosts: Sequence[Host], now: datetime) -> Iterator[dict[str, Any]]:
    for host in hosts:
        for number, server_id in enumerate(host.server_ids):
            yield {
                "server_id": server_id,
                "external_id": f"panel-{server_id}",
                "name": f"{host.name}-vm{number:03}",
                "hypervisor_id": host.hypervisor_id,
                "domain_uuid": server_id,
                "create_time": now,
                "place_state": "present",
            }


@dataclass(frozen=True, slots=True)
class _Point:
    backup: dict[str, Any]
    disk: dict[str, Any]
    needs: tuple[dict[str, Any], ...]


def _backups(hosts: Sequence[Host], storage_id: str, count: int, now: datetime) -> Iterator[_Point]:
    for host in hosts:
        for server_id in host.server_ids:
            chain: list[str] = []
            for number in range(count):
                time = now - timedelta(days=count - number)
                backup_id = new_id(time)
                chain = [*chain, backup_id] if number % CHAIN else [backup_id]
                yield _point(host, server_id, storage_id, chain, time)


def _point(host: Host, server_id: str, storage_id: str, chain: Sequence[str], time: datetime) -> _Point:
    *older, backup_id = chain
    backup = {
        "backup_id": backup_id,
        "server_id": server_id,
        "storage_id": storage_id,
        "hypervisor_id": host.hypervisor_id,
        "create_time": time,
        "state": "available",
        "consistency": "frozen",
        "stored_bytes": 1 << 30,
        "domain_uuid": server_id,
        "manifest_digest": "d" * 64,
    }
    disk = {
        "backup": backup_id,
        "disk": "vda",
        "position": 0,
        "type": "incremental" if older else "full",
        "chain_id": chain[0],
        "parent_backup_id": older[-1] if older else "",
        "size_bytes": 10 << 30,
        "data_bytes": 1 << 30,
        "stored_bytes": 1 << 30,
        "sha256": "a" * 64,
    }
    needs = tuple(
        {"backup": backup_id, "needed_backup_id": needed, "position": number} for number, needed in enumerate(older)
    )
    return _Point(backup, disk, needs)


def _add_up() -> None:
    """Keep what backups add up to, as `controller/totals.py` does with each change."""
    models.proxy.execute_sql("""
        INSERT INTO backup_total (server_id, storage_id, backup_count, stored_bytes, last_backup_time)
        SELECT server_id, storage_id, COUNT(*), SUM(stored_bytes), MAX(create_time) FROM backup GROUP BY server_id, storage_id
    """)
    models.proxy.execute_sql("""
        INSERT INTO storage_total (storage_id, server_count, backup_count, stored_bytes)
        SELECT storage_id, COUNT(*), SUM(backup_count), SUM(stored_bytes) FROM backup_total GROUP BY storage_id
    """)
    models.proxy.execute_sql("""
        INSERT INTO unprotected_server (server_id, begin_time) SELECT server_id, create_time FROM server
        WHERE NOT EXISTS (SELECT 1 FROM backup_total WHERE backup_total.server_id = server.server_id)
    """)


def _insert(table: Any, rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows by statements of many rows each, made by hand: building them with the models takes five times as long."""
    database, columns = models.proxy, table._meta.sorted_fields
    if columns[0].name == "sequence":
        raise ValueError("a table that numbers its rows is not for this")
    names = ", ".join(f'"{one.column_name}"' for one in columns)
    line = f"({', '.join([database.param] * len(columns))})"
    for batch in _batched(rows, min(_ROWS, 30000 // len(columns))):
        values = [_value(column, row) for row in batch for column in columns]
        lines = ", ".join([line] * len(batch))
        database.execute_sql(f'INSERT INTO "{table._meta.table_name}" ({names}) VALUES {lines}', values)


def _value(column: Any, row: dict[str, Any]) -> Any:
    if column.name in row:
        value = row[column.name]
        return to_microseconds(value) if isinstance(value, datetime) else value
    default = column.default() if callable(column.default) else column.default
    return column.db_value(default)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
