"""`bmctl audit …`: who did what."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import words
from clients.cli.options import Limit, Output, Since, Until, group, moment
from clients.cli.output import Column, Screen, state
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.text import Text

    from clients.gen.backupmanager.v1.audit_pb2 import AuditEntry

app = group()


@app.command("list")
def list_entries(
    caller: Annotated[str, typer.Option("--caller", help="Only this token's: name or id; or a hypervisor's id.")] = "",
    method: Annotated[str, typer.Option("--method", help="Only methods with this text, such as DeleteStorage.")] = "",
    resource: Annotated[str, typer.Option("--resource", help="Only what named or made this: an id or a name.")] = "",
    outcome: Annotated[str, typer.Option("--outcome", help="Only with this outcome: OK or a reason.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="Only what was refused or failed.")] = False,
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List calls that changed something, or were to, newest first."""
    from clients.gen.backupmanager.v1.audit_service_pb2 import ListAuditEntriesRequest

    request = ListAuditEntriesRequest(caller=caller, method=method, resource=resource, outcome=outcome, failed=failed)
    if (start := moment("--since", since)) is not None:
        request.start_time.FromDatetime(start)
    if (end := moment("--until", until)) is not None:
        request.end_time.FromDatetime(end)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, more = await controller.every(controller.audit.ListAuditEntries, request, "entries", limit)
        screen.show_list(reply, "entries", _columns(screen), empty="No such calls.")
        if more:
            screen.note(f"There are more; these are the newest {limit}. --limit 0 shows all.")

    run(work)


def _columns(screen: Screen) -> tuple[Column, ...]:
    return (
        Column("When", lambda one: words.short_time(words.set_time(one, "time"), screen.now)),
        Column("Who", lambda one: one.caller or "-"),
        Column("Did", lambda one: one.method.rpartition("/")[2]),
        Column("To", lambda one: one.resource or "-"),
        Column("Made", lambda one: one.made or "-", rank=2),
        Column("Outcome", _outcome),
        Column("From", lambda one: one.peer or "-", rank=1),
    )


def _outcome(entry: "AuditEntry") -> "Text":
    if entry.outcome == "OK":
        return state("done")
    return state(entry.outcome.lower().replace("_", " ") if entry.outcome else "unknown")
