"""`bmctl ticket …`: restore tickets that lie on hypervisors, and taking them back. `bmctl backup ticket` leaves one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import words
from clients.cli.names import Names
from clients.cli.options import Limit, Output, ServerFilter, StorageFilter, group
from clients.cli.output import Column, Screen, plain, state_of, styled
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.ticket_pb2 import RestoreTicket

app = group()
TicketArgument = Annotated[list[str], typer.Argument(metavar="TICKET...", help="Ids, which are those of their jobs.")]


@app.command("list")
def list_tickets(
    server: ServerFilter = "",
    storage: StorageFilter = "",
    hypervisor: Annotated[str, typer.Option("--hypervisor", help="Only those on this one: id or name.")] = "",
    ended: Annotated[bool, typer.Option("--all", help="Also those that cannot be used any more.")] = False,
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List restore tickets, newest first."""
    from clients.gen.backupmanager.v1.ticket_service_pb2 import ListTicketsRequest

    request = ListTicketsRequest(server_id=server, storage_id=storage, hypervisor_id=hypervisor, include_ended=ended)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.tickets.ListTickets, request, "tickets", limit)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
        columns = (
            Column("Server", lambda one: names[one.server_id]),
            Column("State", state_of),
            Column("On", lambda one: names[one.hypervisor_id]),
            Column("Expires", lambda one: words.short_time(words.set_time(one, "expire_time"), screen.now)),
            Column("Storage", lambda one: names[one.storage_id], rank=1),
            Column("Disks", lambda one: ", ".join(one.disks), rank=3),
            Column("Asked by", lambda one: one.requester, rank=2),
            Column("Why revoked", lambda one: words.enum_label(one, "revoke_reason"), rank=4),
            Column("Ticket", lambda one: one.ticket_id, whole=True),
        )
        screen.show_list(reply, "tickets", columns, empty="No restore ticket can be used now.")

    run(work)


@app.command()
def revoke(ticket: TicketArgument, output: Output = "table") -> None:
    """Take restore tickets back before they expire.

    Their files on the hypervisors are made useless: at once, or when an agent that is offline comes back. A restore that has begun goes
    on. What somebody with root there has copied from such a file, the storage's credentials, stays good until it is changed at the
    storage's server.
    """
    from clients.gen.backupmanager.v1.ticket_service_pb2 import RevokeTicketRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        revoked = [
            (await controller.call(controller.tickets.RevokeTicket, RevokeTicketRequest(ticket_id=one))).ticket
            for one in ticket
        ]
        names = Names() if screen.json else await Names.load(controller, "storages", "hypervisors")
        shown: dict[str, Any] = {"tickets": [plain(one) for one in revoked]}
        screen.show(shown, lambda: _said(revoked, names))

    run(work)


def _said(revoked: "list[RestoreTicket]", names: Names) -> "RenderableType":
    """Return a sentence for each ticket, and what a revocation cannot do."""
    from rich.console import Group

    lines = [
        f"Ticket {one.ticket_id}: {_SAID[words.enum_label(one, 'state')].format(names[one.hypervisor_id])}"
        for one in revoked
    ]
    storages = sorted({names[one.storage_id] for one in revoked})
    caution = (
        "If root there may have copied a ticket, change the credentials at the storage's server too, and then here:"
        f" bmctl storage update {' | '.join(storages)}"
    )
    return Group(*lines, styled(caution, "dim"))


_SAID = {
    "active": "it can still be used on {}.",
    "revoking": "revoked; {} has been sent the word, and confirms it: bmctl ticket list --all",
    "revoked": "revoked, and of no use any more on {}.",
    "expired": "it had expired, and is removed on {}.",
}
