"""`bmctl server …`: which servers there are."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import access, ask, backup_tree, purges, words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import Output, ServerArgument, StorageFilter, Yes, group, span
from clients.cli.output import Column, Format, Screen, card, heading, plain, state, state_of
from clients.cli.session import Controller, run
from engine.ids import is_id

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.server_pb2 import Server

app = group()
app.command("purge")(purges.purge_server)
app.command("purge-cancel")(purges.cancel_of_server)
app.add_typer(access.app, name="access")

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
    package_name: Annotated[str, typer.Option("--package", help="What it was sold as: id or name.")] = "",
    customer: Annotated[str, typer.Option("--owner", help="Whose it is, as the panel knows them.")] = "",
    later: Annotated[bool, typer.Option("--not-in-service", help="Its schedule leaves it out for now.")] = False,
    output: Output = "table",
) -> None:
    """Register a server for a domain.

    The same external id again returns the same server.
    """
    from clients.gen.backupmanager.v1.server_service_pb2 import RegisterServerRequest

    request = RegisterServerRequest(
        external_id=external_id,
        name=name,
        hypervisor_id=hypervisor,
        package_id=package_name,
        owner=customer,
        commissioned=not later,
    )
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


# ---- the panel's word ----------------------------------------------------------------------------------------------------


@app.command()
def lock(
    server: ServerArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, in one line, such as rescue.")],
    lifetime: Annotated[str, typer.Option("--for", help="How long, such as 2h; until unlocked if not given.")] = "",
    output: Output = "table",
) -> None:
    """Lock a server: backups and restores of it are refused."""
    from clients.gen.backupmanager.v1.server_service_pb2 import SetServerLockRequest

    request = SetServerLockRequest(reason=reason)
    if (wanted := span("--for", lifetime)) is not None:
        request.lifetime.FromTimedelta(wanted)
    _say(server, "SetServerLock", request, output)


@app.command()
def unlock(server: ServerArgument, output: Output = "table") -> None:
    """Take a server's lock away."""
    from clients.gen.backupmanager.v1.server_service_pb2 import ClearServerLockRequest

    _say(server, "ClearServerLock", ClearServerLockRequest(), output)


@app.command()
def commission(server: ServerArgument, output: Output = "table") -> None:
    """Put a server into service: its schedule backs it up."""
    from clients.gen.backupmanager.v1.server_service_pb2 import CommissionServerRequest

    _say(server, "CommissionServer", CommissionServerRequest(), output)


@app.command()
def decommission(server: ServerArgument, output: Output = "table") -> None:
    """Take a server out of service: its schedule leaves it out."""
    from clients.gen.backupmanager.v1.server_service_pb2 import DecommissionServerRequest

    _say(server, "DecommissionServer", DecommissionServerRequest(), output)


@app.command()
def owner(
    server: ServerArgument,
    customer: Annotated[str, typer.Argument(metavar="OWNER", help="The customer, as the panel knows them.")],
    keep_history: Annotated[
        bool, typer.Option("--keep-history", help="They see older backups too: the same customer, or the first named.")
    ] = False,
    yes: Yes = False,
    output: Output = "table",
) -> None:
    """Say whose server it is.

    Older backups are hidden from another owner, and older portal tokens no longer reach the server.
    """
    from clients.gen.backupmanager.v1.server_service_pb2 import SetServerOwnerRequest

    if not keep_history:
        ask.confirm(f"Give server {server} to {customer}, who will see none of its older backups?", yes=yes)
    _say(server, "SetServerOwner", SetServerOwnerRequest(owner=customer, keep_history=keep_history), output)


@app.command()
def package(
    server: ServerArgument,
    sold_as: Annotated[str, typer.Argument(metavar="PACKAGE", help="Id or name; none takes it away.")],
    output: Output = "table",
) -> None:
    """Say what a server was sold as."""
    from clients.gen.backupmanager.v1.server_service_pb2 import SetServerPackageRequest

    wanted = "" if sold_as == "none" else sold_as
    _say(server, "SetServerPackage", SetServerPackageRequest(package_id=wanted), output)


def _say(server: str, method: str, request: Any, output: Format) -> None:
    """Make a call about one server, which is asked for by any of its names and said by its id."""

    async def work(controller: Controller) -> None:
        request.server_id = (await find(controller, server)).server_id
        reply = await controller.call(getattr(controller.servers, method), request)
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
        Column("Access", lambda one: words.enum_label(one.access, "level"), rank=3),
        Column("Owner", lambda one: one.owner or "-", rank=5),
        Column("External id", lambda one: one.external_id or "-", rank=5),
        Column("Server", lambda one: one.server_id, whole=True, rank=3),
    )


def _domain_state(server: "Server") -> "Text":
    if server.HasField("lock"):
        return state("locked")
    telling = words.enum_label(server, "state") in {"deleted", "conflict"}
    return state_of(server, "state" if telling else "domain_state")


async def _show(controller: Controller, screen: Screen, server: "Server") -> None:
    kinds = ("hypervisors", "packages") if server.package_id else ("hypervisors",)
    names = Names() if screen.json else await Names.load(controller, *kinds)
    screen.show({"server": plain(server)}, lambda: _card(screen, server, names))


def _card(screen: Screen, server: "Server", names: Names) -> "RenderableType":
    now = screen.now
    facts = (
        ("Server", server.server_id),
        ("External id", server.external_id),
        ("Hypervisor", names[server.hypervisor_id]),
        ("Domain", f"{server.domain_name}  {server.domain_uuid}".strip()),
        ("State", state_of(server)),
        ("Also claimed by", ", ".join(names[one] for one in server.rival_hypervisor_ids)),
        ("Guest agent", state_of(server, "guest_agent")),
        ("Access level", access.described(server)),
        ("In service", "" if server.commissioned else "no: its schedule leaves it out"),
        ("Locked", _lock(server, now)),
        ("Package", names[server.package_id] if server.package_id else ""),
        ("Owner", server.owner),
        ("Busy with job", server.busy_job_id),
        ("Last backup", words.long_time(words.set_time(server, "last_backup_time"), now)),
        ("Registered", words.long_time(words.set_time(server, "create_time"), now)),
        ("Deleted", words.long_time(words.set_time(server, "delete_time"), now)),
    )
    parts = [screen.table(server.disks, _DISKS)] if server.disks else []
    return card(heading(server.name, state_of(server, "domain_state")), facts, *parts)


def _lock(server: "Server", now: "datetime") -> str:
    if not server.HasField("lock"):
        return ""
    end = words.set_time(server.lock, "expire_time")
    return f"{server.lock.reason}, until {words.long_time(end, now) if end else 'unlocked'}"
