"""`bmctl log …`: what the controller did and met of its own accord."""

from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import links, words
from clients.cli.links import AboutBatch, AboutHypervisor, AboutJob, AboutSchedule, AboutServer, AboutStorage
from clients.cli.names import Names
from clients.cli.options import Limit, Output, Since, Until, group, moment
from clients.cli.output import Screen, plain, printable
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.system_log_pb2 import SystemLogEntry


class Level(StrEnum):  # typer takes a list of an enum, and none of a Literal
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Source(StrEnum):
    DISPATCHER = "dispatcher"
    INVENTORY = "inventory"
    PURGE = "purge"
    HEALTH = "health"
    PRUNE = "prune"
    HEAL = "heal"


app = group()

_LEVEL_STYLES = {"warning": "yellow", "error": "red"}


@app.command("list")
def list_entries(
    level: Annotated[list[Level] | None, typer.Option("--level", help="Only of this level; repeatable.")] = None,
    source: Annotated[list[Source] | None, typer.Option("--source", help="Only from this part; repeatable.")] = None,
    text: Annotated[str, typer.Option("--text", help="Only with this text in the message.")] = "",
    server: AboutServer = "",
    storage: AboutStorage = "",
    hypervisor: AboutHypervisor = "",
    job: AboutJob = "",
    batch: AboutBatch = "",
    schedule: AboutSchedule = "",
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """Show the newest lines of the system log, oldest first."""
    from clients.gen.backupmanager.v1 import system_log_pb2
    from clients.gen.backupmanager.v1.system_log_service_pb2 import ListSystemLogEntriesRequest

    request = ListSystemLogEntriesRequest(text=text, job_id=job, batch_id=batch, schedule_id=schedule)
    for one in level or ():
        request.levels.append(words.enum_value(system_log_pb2.LogLevel, "LOG_LEVEL_", one))
    for part in source or ():
        request.sources.append(words.enum_value(system_log_pb2.LogSource, "LOG_SOURCE_", part))
    if (start := moment("--since", since)) is not None:
        request.start_time.FromDatetime(start)
    if (end := moment("--until", until)) is not None:
        request.end_time.FromDatetime(end)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        request.server_id = await links.server_id(controller, server)
        request.storage_id = await links.storage_id(controller, storage)
        request.hypervisor_id = await links.hypervisor_id(controller, hypervisor)
        reply, more = await controller.every(controller.system_log.ListSystemLogEntries, request, "entries", limit)
        if screen.json:
            screen.show({"entries": [plain(entry) for entry in reply.entries]}, lambda: None)
            return
        names = await Names.load(controller, "servers", "storages", "hypervisors")
        for entry in reversed(reply.entries):
            _print(screen, entry, names)
        if not reply.entries:
            screen.note("No such lines.")
        if more:
            screen.note(f"There are older ones; these are the newest {limit}. --limit 0 shows all.")

    run(work)


def _print(screen: Screen, entry: "SystemLogEntry", names: Names) -> None:
    level = words.enum_label(entry, "level")
    when = entry.time.ToDatetime(tzinfo=UTC).astimezone()
    about = [names[one] for one in (entry.server_id, entry.storage_id, entry.hypervisor_id) if one]
    about += [f"{word} {one}" for word, one in (("batch", entry.batch_id), ("job", entry.job_id)) if one]
    rest = f"  ({', '.join(about)})" if about else ""
    line = f"{when:%Y-%m-%d %H:%M:%S}  {level:<7}  {words.enum_label(entry, 'source'):<10}  {entry.message}{rest}"
    screen.console.print(printable(line), style=_LEVEL_STYLES.get(level), soft_wrap=True)
