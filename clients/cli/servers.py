"""`bmctl server …`: which servers there are."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import ask, backup_tree, purges, words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import Output, ServerArgument, StorageFilter, Yes, group
from clients.cli.output import Column, Screen, card, heading, plain, state_of
from clients.cli.session import Controller, run
from engine.ids import is_id

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.server_pb2 import Server

app = group()
app.command("purge")(purges.purge_server)
app.command("purge-cancel")(purges.cancel_of_server)

_DISKS = (
    Column("Disk", lambda one: one.disk),
    Column("Format", lambda one: one.format or "-"),
    Column("Size", lambda one: words.size(one.size_bytes), right=True),
    Column("Path", lambda one: one.path or "-", rank=1),
    Column("Not backed up because", lambda one: one.unsupported_reason or "-"),
)


@app.command()
def register(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Its libvirt domain there: name or UUID.")],
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="The hypervisor it lives on: id or name.")],
    name: Annotated[str, typer.Option("--name", help="Name for people; the domain's when not given.")] = "",
    external_id: Annotated[str, typer.Option("--external-id", help="The panel's id of it.")] = "",
    output: Output = "table",
) -> None:
    """Register a server for a domain.

    The same external id again returns the same server.
    """
    from clients.gen.backupmanager.v1.server_service_pb2 import RegisterServerRequest

    request = RegisterServerRequest(external_id=external_id, name=name, hypervisor_id=hypervisor)
    if is_id(domain.lower()):
        request.domain_uuid = domain.lower()
    else:
        request.domain_name = domain

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.servers.RegisterServer, request)
        await _show(controller, Screen(output), reply.server)

    run(work)


@app.command("list")
def list_servers(
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="Only those of this hypervisor: id or name.")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Also those that the panel deleted.")] = False,
    output: Output = "table",
) -> None:
    """List servers by name."""
    from clients.gen.backupmanager.v1.server_service_pb2 import ListServersRequest

    request = ListServersRequest(hypervisor_id=hypervisor, include_deleted=deleted)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.servers.ListServers, request, "servers")
        names = Names() if screen.json else await Names.load(controller, "hypervisors")
        screen.show_list(reply, "servers", _columns(screen, names), empty=_NONE)

    run(work)


@app.command()
def show(server: ServerArgument, output: Output = "table") -> None:
    """Show one server with its disks."""

    async def work(controller: Controller) -> None:
        await _show(controller, Screen(output), await find(controller, server))

    run(work)


@app.command()
def tree(
    server: ServerArgument,
    storage: StorageFilter = "",
    disk: Annotated[str, typer.Option("--disk", help="Only this disk, such as vda.")] = "",
    output: Output = "table",
) -> None:
    """Draw a server's backups: disk, chain, record."""
    from clients.gen.backupmanager.v1.backup_service_pb2 import ListBackupChainsRequest

    request = ListBackupChainsRequest(server_id=server, storage_id=storage, disk=disk)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        found = await find(controller, server)
        reply, _ = await controller.every(controller.backups.ListBackupChains, request, "chains")
        document = {"chains": [plain(one) for one in reply.chains]}
        screen.show(document, lambda: backup_tree.draw(found.name, reply.chains, screen.now))

    run(work)


@app.command()
def update(
    server: ServerArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name for people.")] = None,
    external_id: Annotated[str | None, typer.Option("--external-id", help="New id in the panel.")] = None,
    hypervisor: Annotated[str | None, typer.Option("--hypervisor", help="It lives there now: id or name.")] = None,
    domain_uuid: Annotated[str | None, typer.Option("--domain-uuid", help="UUID of its domain there.")] = None,
    output: Output = "table",
) -> None:
    """Change a server's name, external id or place."""
    from clients.gen.backupmanager.v1.server_service_pb2 import UpdateServerRequest

    changes = {"name": name, "external_id": external_id, "hypervisor_id": hypervisor, "domain_uuid": domain_uuid}
    given = {field: value for field, value in changes.items() if value is not None}
    if not given:
        raise Usage(field="server update", problem="nothing to change was given")

    async def work(controller: Controller) -> None:
        before = await find(controller, server)
        if hypervisor:
            given["hypervisor_id"] = await find_hypervisor_id(controller, hypervisor)
        request = UpdateServerRequest()
        request.server.server_id, request.server.etag = before.server_id, before.etag
        for field, value in given.items():
            setattr(request.server, field, value)
            request.update_mask.paths.append(field)
        reply = await controller.call(controller.servers.UpdateServer, request)
        await _show(controller, Screen(output), reply.server)

    run(work)


@app.command()
def delete(server: ServerArgument, yes: Yes = False, output: Output = "table") -> None:
    """Mark a server as deleted; its backups stay."""
    from clients.gen.backupmanager.v1.server_service_pb2 import DeleteServerRequest

    async def work(controller: Controller) -> None:
        before = await find(controller, server)
        ask.confirm(f"Mark server {before.name} ({before.server_id}) as deleted? Its backups stay.", yes=yes)
        request = DeleteServerRequest(server_id=before.server_id)
        reply = await controller.call(controller.servers.DeleteServer, request)
        await _show(controller, Screen(output), reply.server)

    run(work)


async def find(controller: Controller, server: str) -> "Server":
    """Return a server by id, external id or name. Raises CallRefused."""
    from clients.gen.backupmanager.v1.server_service_pb2 import GetServerRequest

    return (await controller.call(controller.servers.GetServer, GetServerRequest(server_id=server))).server


async def find_hypervisor_id(controller: Controller, hypervisor: str) -> str:
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import GetHypervisorRequest

    request = GetHypervisorRequest(hypervisor_id=hypervisor)
    return (await controller.call(controller.hypervisors.GetHypervisor, request)).hypervisor.hypervisor_id


_NONE = "No servers yet. `bmctl server register DOMAIN --hypervisor NAME` registers one."


def _columns(screen: Screen, names: Names) -> tuple[Column, ...]:
    return (
        Column("Name", lambda one: one.name),
        Column("Domain", _domain_state),
        Column("Last backup", lambda one: words.short_time(words.set_time(one, "last_backup_time"), screen.now)),
        Column("Hypervisor", lambda one: names[one.hypervisor_id], rank=1),
        Column("Disks", lambda one: words.size(sum(disk.size_bytes for disk in one.disks)), right=True, rank=2),
        Column("Guest agent", lambda one: words.enum_label(one, "guest_agent"), rank=4),
        Column("External id", lambda one: one.external_id or "-", rank=5),
        Column("Server", lambda one: one.server_id, whole=True, rank=3),
    )


def _domain_state(server: "Server") -> "Text":
    deleted = words.enum_label(server, "state") == "deleted"
    return state_of(server, "state" if deleted else "domain_state")


async def _show(controller: Controller, screen: Screen, server: "Server") -> None:
    names = Names() if screen.json else await Names.load(controller, "hypervisors")
    screen.show({"server": plain(server)}, lambda: _card(screen, server, names))


def _card(screen: Screen, server: "Server", names: Names) -> "RenderableType":
    now = screen.now
    facts = (
        ("Server", server.server_id),
        ("External id", server.external_id),
        ("Hypervisor", names[server.hypervisor_id]),
        ("Domain", f"{server.domain_name}  {server.domain_uuid}".strip()),
        ("State", state_of(server)),
        ("Guest agent", state_of(server, "guest_agent")),
        ("Busy with job", server.busy_job_id),
        ("Last backup", words.long_time(words.set_time(server, "last_backup_time"), now)),
        ("Registered", words.long_time(words.set_time(server, "create_time"), now)),
        ("Deleted", words.long_time(words.set_time(server, "delete_time"), now)),
    )
    parts = [screen.table(server.disks, _DISKS)] if server.disks else []
    return card(heading(server.name, state_of(server, "domain_state")), facts, *parts)
