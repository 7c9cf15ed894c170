"""`bmctl purge …`, and the verbs of servers and schedules that order one: deleting all backups of servers."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import ask, words
from clients.cli.names import Names
from clients.cli.options import Limit, Output, RequestId, ServerArgument, ServerFilter, Yes, group, request_id
from clients.cli.output import Column, Format, Screen, card, heading, plain, state_of, styled
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.purge_service_pb2 import PreviewPurgeResponse, PurgeTarget

app = group()
PurgeArgument = Annotated[str, typer.Argument(metavar="PURGE", help="Its id.")]
ScheduleArgument = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its id, or its hypervisor.")]


@app.command("list")
def list_purges(
    server: ServerFilter = "",
    ended: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List what is to be purged, newest first."""
    from clients.gen.backupmanager.v1.purge_service_pb2 import ListPurgesRequest

    request = ListPurgesRequest(server_id=server, include_ended=ended)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.purges.ListPurges, request, "purges", limit)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages")
        columns = (
            Column("Server", lambda one: names[one.server_id]),
            Column("State", state_of),
            Column("Due", lambda one: words.short_time(words.set_time(one, "due_time"), screen.now)),
            Column("Storage", lambda one: names[one.storage_id] if one.storage_id else "all", rank=2),
            Column("Failures", lambda one: str(one.failure_count or "-"), right=True, rank=1),
            Column("Purge", lambda one: one.purge_id, whole=True),
        )
        screen.show_list(reply, "purges", columns, empty="Nothing is to be purged.")

    run(work)


@app.command()
def cancel(purge: PurgeArgument, output: Output = "table") -> None:
    """Cancel a purge that has not begun."""
    from clients.gen.backupmanager.v1.purge_service_pb2 import CancelPurgeRequest

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.purges.CancelPurge, CancelPurgeRequest(purge_id=purge))
        Screen(output).show({"purge": plain(reply.purge)}, lambda: f"Purge {purge} is cancelled; nothing is deleted.")

    run(work)


def purge_server(
    server: ServerArgument, id_of_request: RequestId = "", yes: Yes = False, output: Output = "table"
) -> None:
    """Delete all backups of a server.

    On every storage, whether it is deleted or not. Shows what would go, and asks.
    """
    from clients.gen.backupmanager.v1.purge_service_pb2 import PurgeTarget

    _order(PurgeTarget(server_id=server), id_of_request, output, yes=yes)


def cancel_of_server(server: ServerArgument, output: Output = "table") -> None:
    """Cancel the purges of a server that have not begun."""
    from clients.gen.backupmanager.v1.purge_service_pb2 import CancelPurgeRequest, ListPurgesRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.purges.ListPurges, ListPurgesRequest(server_id=server), "purges")
        ended = [
            (await controller.call(controller.purges.CancelPurge, CancelPurgeRequest(purge_id=one.purge_id))).purge
            for one in reply.purges
        ]
        shown = {"purges": [plain(one) for one in ended]}
        screen.show(shown, lambda: f"{words.plural(len(ended), 'purge')} of {server} cancelled.")

    run(work)


def purge_deleted(
    schedule: ScheduleArgument, id_of_request: RequestId = "", yes: Yes = False, output: Output = "table"
) -> None:
    """Delete the backups of a schedule's deleted servers, now."""
    from clients.gen.backupmanager.v1.purge_service_pb2 import PurgeTarget

    _order(PurgeTarget(schedule_id=schedule), id_of_request, output, yes=yes)


def purge_all(
    schedule: ScheduleArgument, id_of_request: RequestId = "", yes: Yes = False, output: Output = "table"
) -> None:
    """Delete all backups of all of a schedule's servers, now."""
    from clients.gen.backupmanager.v1.purge_service_pb2 import PurgeTarget

    _order(PurgeTarget(schedule_id=schedule, include_active=True), id_of_request, output, yes=yes)


def _order(target: "PurgeTarget", id_of_request: str, output: Format, *, yes: bool) -> None:
    from clients.gen.backupmanager.v1.purge_service_pb2 import PreviewPurgeRequest, StartPurgeRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        preview = await controller.call(controller.purges.PreviewPurge, PreviewPurgeRequest(target=target))
        names = await Names.load(controller, "servers", "storages")
        screen.side.print(_preview(screen, preview, names))
        count = words.plural(preview.backup_count, "backup")
        ask.confirm(f"Delete {count} of {words.plural(preview.server_count, 'server')} for good?", yes=yes)
        request = StartPurgeRequest(
            target=target, confirmation=preview.confirmation, request_id=request_id(id_of_request)
        )
        reply = await controller.call(controller.purges.StartPurge, request)
        screen.show(
            plain(reply), lambda: f"{words.plural(reply.purge_count, 'purge')} ordered. `bmctl purge list` shows them."
        )

    run(work)


def _preview(screen: Screen, preview: "PreviewPurgeResponse", names: Names) -> "RenderableType":
    columns = (
        Column("Server", lambda one: names[one.server_id]),
        Column("Storage", lambda one: names[one.storage_id]),
        Column("Backups", lambda one: str(one.backup_count), right=True),
        Column("Stored", lambda one: words.size(one.stored_bytes), right=True),
    )
    facts = (
        ("Servers", str(preview.server_count)),
        ("Backups", str(preview.backup_count)),
        ("Frees", words.size(preview.stored_bytes)),
    )
    warning = styled("  Nothing of this can be restored afterwards.", "bold red")
    return card(heading("Purge"), facts, warning, screen.table(preview.shares, columns))
