"""Which access level a server has, whether it is locked, and which servers of a hypervisor are to be backed up (A1-A4, X15).

Sync functions, run by `Database.run`.
"""

from collections.abc import Sequence
from datetime import datetime

from controller import servers
from controller.db import models
from controller.rules import access as rules
from controller.rules.access import Lock, Resolved
from controller.servers import Server


def of_server(server_id: str) -> Resolved:
    """Return the level of a server and who set it. Raises ServerNotFound."""
    server = servers.find(server_id)
    return of_servers([server])[server.server_id]


def of_servers(chosen: Sequence[Server]) -> dict[str, Resolved]:
    """Return the levels of servers by id."""
    packages = {row.package_id: row.default_level for row in models.Package.select()}
    schedules = {one: schedule_default(one) for one in {server.hypervisor_id for server in chosen}}
    return {
        server.server_id: rules.resolve(
            server.access_override, packages.get(server.package_id, rules.INHERIT), schedules[server.hypervisor_id]
        )
        for server in chosen
    }


def schedule_default(_hypervisor_id: str) -> str:
    """Return what a hypervisor's schedule says of its servers, "" where there is none or it passes on."""
    return rules.INHERIT


def lock_of(server_id: str, now: datetime | None = None) -> Lock | None:
    """Return a server's lock, None when it has none. With `now`, an expired one is none. Raises ServerNotFound."""
    lock = servers.find(server_id).lock
    return lock if lock is not None and (now is None or lock.holds(now)) else None


def commissioned(hypervisor_id: str) -> list[Server]:
    """Return the living servers of a hypervisor that the panel put into service, by name."""
    return servers.list_servers(hypervisor_id=hypervisor_id, commissioned=True, limit=servers.OF_HYPERVISOR_MAX)
