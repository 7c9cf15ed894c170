"""The servers of a batch, as far as their being backed up needs them: one statement for all of a hypervisor.

    server ─┬─ domain         is it migrating?                      `servers.list_servers` tells everything of each server, for
            ├─ backup_total   when did it last go well?             several times the cost of all the rest of a batch's start
            └─ server_claim   does another hypervisor have it too?

Sync functions, inside `Database.run`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.db.fields import from_microseconds
from controller.db.statements import chunks, statement, value_lines
from controller.rules.access import Lock


@dataclass(frozen=True, slots=True)
class Share:
    """A living server, by the names that `servers.Server` has."""

    server_id: str
    hypervisor_id: str
    domain_uuid: str
    package_id: str
    access_override: str
    lock: Lock | None
    domain_state: str
    last_backup_time: datetime | None
    rival_hypervisor_ids: tuple[str, ...] = ()
    state: str = "active"

    @property
    def conflict(self) -> bool:
        """More than one hypervisor claims to have it (N1)."""
        return bool(self.rival_hypervisor_ids)


_SHARES = """
    SELECT server.server_id, server.hypervisor_id, server.domain_uuid, package_id, access_override,
        lock_reason, lock_time, lock_expire_time, COALESCE(domain.state, ''),
        (SELECT MAX(last_backup_time) FROM backup_total WHERE backup_total.server_id = server.server_id)
    FROM server
    LEFT JOIN domain ON domain.hypervisor_id = server.hypervisor_id AND domain.domain_uuid = server.domain_uuid
    WHERE {} AND server.delete_time IS NULL
"""
_RIVALS = """
    SELECT server_claim.server_id, server_claim.hypervisor_id
    FROM server JOIN server_claim ON server_claim.server_id = server.server_id
    WHERE {} AND server.delete_time IS NULL AND NOT refused ORDER BY server_claim.hypervisor_id
"""


def of_hypervisor(hypervisor_id: str) -> list[Share]:
    """Return the living servers of a hypervisor that the panel put into service."""
    return _read("server.hypervisor_id = ? AND commissioned", hypervisor_id)


def of_servers(server_ids: Sequence[str]) -> list[Share]:
    """Return the living ones of these servers."""
    return [
        share
        for chunk in chunks(server_ids)
        for share in _read(f"server.server_id IN ({value_lines(len(chunk), '?')})", *chunk)
    ]


def _read(which: str, *values: str) -> list[Share]:
    rivals: dict[str, tuple[str, ...]] = {}
    for server_id, hypervisor_id in statement(_RIVALS.format(which), *values):
        rivals[server_id] = (*rivals.get(server_id, ()), hypervisor_id)
    return [_share(row, rivals.get(row[0], ())) for row in statement(_SHARES.format(which), *values)]


def _share(row: tuple[Any, ...], rivals: tuple[str, ...]) -> Share:
    server_id, hypervisor_id, domain_uuid, package_id, override, reason, since, until, domain_state, newest = row
    return Share(
        server_id,
        hypervisor_id,
        domain_uuid,
        package_id,
        override,
        None if since is None else Lock(reason, from_microseconds(since), _time(until)),
        domain_state,
        _time(newest),
        rivals,
        "conflict" if rivals else "active",
    )


def _time(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)
