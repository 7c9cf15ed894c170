"""`bmctl server access …`: what is done with a server, and what its end user may do; and the words for levels."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from clients.cli import ask, words
from clients.cli.failures import Usage
from clients.cli.options import Output, ServerArgument, Yes, group
from clients.cli.output import Screen, card, heading
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.server_pb2 import Server

Level: TypeAlias = Literal["inherit", "disabled", "scheduled-only", "view-and-restore", "full-access", "manual-only"]
LevelArgument: TypeAlias = Annotated[Level, typer.Argument(metavar="LEVEL", help="A level, or inherit.")]

app = group("What is done with a server, and what its end user may do.")

_ORIGINS = {"server": "its own", "package": "its package's", "schedule": "its schedule's", "default": "nobody said any"}


@app.command()
def get(server: ServerArgument, output: Output = "table") -> None:
    """Show a server's access level, and who says so."""

    async def work(controller: Controller) -> None:
        from clients.cli.servers import find

        _show(Screen(output), await find(controller, server))

    run(work)


@app.command("set")
def set_level(server: ServerArgument, level: LevelArgument, output: Output = "table") -> None:
    """Set a server's own access level.

    LEVEL is disabled, scheduled-only, view-and-restore, full-access, manual-only, or inherit for what its package or schedule says.
    """
    from clients.gen.backupmanager.v1.server_service_pb2 import SetServerAccessRequest

    async def work(controller: Controller) -> None:
        from clients.cli.servers import find

        before = await find(controller, server)
        request = SetServerAccessRequest(server_id=before.server_id, level=level_value(level), etag=before.etag)
        reply = await controller.call(controller.servers.SetServerAccess, request)
        _show(Screen(output), reply.server)

    run(work)


@app.command()
def bulk(
    level: LevelArgument,
    server: Annotated[list[str] | None, typer.Option("--server", help="This one; repeatable.")] = None,
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="All in service there: id or name.")] = "",
    package: Annotated[str, typer.Option("--package", help="All of this package: id or name.")] = "",
    yes: Yes = False,
    output: Output = "table",
) -> None:
    """Set the own access level of many servers, all or none."""
    from clients.gen.backupmanager.v1.server_service_pb2 import BulkSetServerAccessRequest

    if sum(map(bool, (server, hypervisor, package))) != 1:
        raise Usage(field="server access bulk", problem="exactly one of --server, --hypervisor and --package is needed")
    which = words.plural(len(server or ()), "server") if server else "all servers of " + (hypervisor or package)

    async def work(controller: Controller) -> None:
        from clients.cli.servers import find

        request = BulkSetServerAccessRequest(hypervisor_id=hypervisor, package_id=package, level=level_value(level))
        for one in server or ():
            request.server_ids.append((await find(controller, one)).server_id)
        ask.confirm(f"Set the access level of {which} to {level}?", yes=yes)
        reply = await controller.call(controller.servers.BulkSetServerAccess, request)
        count = words.plural(reply.server_count, "server")
        Screen(output).show(reply, lambda: f"{count}, {reply.changed_count} of them changed.")

    run(work)


def level_value(level: str) -> Any:
    """Return the message's value of a level's word; inherit is unset."""
    from clients.gen.backupmanager.v1.access_level_pb2 import ACCESS_LEVEL_UNSPECIFIED, AccessLevel

    return ACCESS_LEVEL_UNSPECIFIED if level == "inherit" else words.enum_value(AccessLevel, "ACCESS_LEVEL_", level)


def level_label(message: Any, field: str) -> str:
    """Return a level in words, `inherit` where it is not set."""
    return words.enum_label(message, field) if getattr(message, field) else "inherit"


def described(server: "Server") -> str:
    """Return a server's level and where it comes from, on one line."""
    origin = words.enum_label(server.access, "origin")
    return f"{words.enum_label(server.access, 'level')} ({_ORIGINS.get(origin, origin)})"


def _show(screen: Screen, server: "Server") -> None:
    from clients.cli.output import plain

    facts = (("Server", server.server_id), ("Access level", described(server)), ("In service", _in_service(server)))
    body = {"server_id": server.server_id, "access": plain(server.access), "commissioned": server.commissioned}
    screen.show(body, lambda: card(heading(server.name), facts))


def _in_service(server: "Server") -> str:
    return "yes" if server.commissioned else "no: its schedule leaves it out"
