"""`bmctl events`: what happened, and what happens.

Following is asking again from the cursor of the last answer, so that a controller that restarts in between costs nothing: no event
is lost or shown twice.
"""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import links
from clients.cli.failures import ContactLost
from clients.cli.links import AboutBatch, AboutHypervisor, AboutJob, AboutSchedule, AboutServer, AboutStorage
from clients.cli.names import Names
from clients.cli.options import Output, moment
from clients.cli.output import Screen, plain, printable
from clients.cli.session import PAGE_SIZE, Controller, run
from clients.errors import CallRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.gen.backupmanager.v1.event_pb2 import Event, EventFilter
    from clients.gen.backupmanager.v1.event_service_pb2 import PollEventsResponse

_WAIT_SECONDS = 10  # of one call; below the time limit of a call
_PAUSE_SECONDS = (0.25, 5.0)  # between two tries without an answer: the first, the longest
_PATIENCE_SECONDS = 600.0
_STYLES = {"failed": "bold red", "damaged": "bold red", "missing": "bold red", "offline": "red", "banned": "red"}
_STYLES |= {"completed_with_warnings": "yellow", "completed": "green", "online": "green"}


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")] = False,
    since: Annotated[
        str, typer.Option("--since", help="Not before: a span such as 2d, or a date; 1h if not given.")
    ] = "",
    cursor: Annotated[
        int | None, typer.Option("--cursor", min=0, help="Only after this sequence; 0 from the oldest that is kept.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Only this kind, such as job.failed, or job. for all; repeatable."),
    ] = None,
    server: AboutServer = "",
    storage: AboutStorage = "",
    hypervisor: AboutHypervisor = "",
    job: AboutJob = "",
    batch: AboutBatch = "",
    schedule: AboutSchedule = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most this many; 0 for all.")] = 0,
    output: Output = "table",
) -> None:
    """Show what happened, oldest first.

    With --output json and --follow each event is one line of JSON.
    """
    from clients.gen.backupmanager.v1.event_pb2 import EventFilter

    wanted = EventFilter(kinds=kind or (), job_id=job, batch_id=batch, schedule_id=schedule)
    start = moment("--since", since) if since or cursor is not None else datetime.now(UTC) - timedelta(hours=1)
    if start is not None:
        wanted.start_time.FromDatetime(start)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        wanted.server_id = await links.server_id(controller, server)
        wanted.storage_id = await links.storage_id(controller, storage)
        wanted.hypervisor_id = await links.hypervisor_id(controller, hypervisor)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages", "hypervisors")
        found: list[dict[str, object]] = []
        reached, count = cursor or 0, 0
        async for reply in _replies(controller, screen, wanted, reached, follow=follow):
            reached = reply.cursor
            for event in reply.events:
                count += 1
                if limit and count > limit:
                    break
                if not screen.json:
                    _print(screen, event, names)
                elif follow:
                    print(json.dumps(plain(event), ensure_ascii=False), flush=True)
                else:
                    found.append(plain(event))
                reached = event.sequence if limit and count == limit else reached
            if limit and count >= limit:
                break
        if screen.json and not follow:
            screen.show({"events": found, "cursor": reached}, lambda: None)
        elif not count and not follow:
            screen.note("Nothing of the kind happened.")

    run(work)


async def _replies(
    controller: Controller, screen: Screen, wanted: "EventFilter", cursor: int, *, follow: bool
) -> "AsyncIterator[PollEventsResponse]":
    """Yield answers until there are no more events, or (with `follow`) for ever. Raises ContactLost, CallRefused."""
    import asyncio

    from clients.cli.progress import is_broken
    from clients.gen.backupmanager.v1.event_service_pb2 import PollEventsRequest

    request = PollEventsRequest(filter=wanted, cursor=cursor, page_size=PAGE_SIZE)
    pause, last_contact = _PAUSE_SECONDS[0], time.monotonic()
    while True:
        try:
            reply = await controller.call(controller.events.PollEvents, request)
        except CallRefused as error:
            if not follow or not is_broken(error):
                raise
            if time.monotonic() - last_contact > _PATIENCE_SECONDS:
                raise ContactLost(seconds=f"{_PATIENCE_SECONDS:.0f}", job_id="") from error
            if pause == _PAUSE_SECONDS[0]:
                screen.note("no answer from the controller, trying again")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_SECONDS[1])
            continue
        pause, last_contact = _PAUSE_SECONDS[0], time.monotonic()
        yield reply
        request.cursor = reply.cursor
        if not reply.more:
            if not follow:
                return
            request.wait.FromSeconds(_WAIT_SECONDS)


def _print(screen: Screen, event: "Event", names: Names) -> None:
    from rich.text import Text

    when = event.time.ToDatetime(tzinfo=UTC).astimezone()
    line = Text(f"{when:%Y-%m-%d %H:%M:%S}  ", style="dim")
    line.append(f"{printable(event.kind):<26}  ", style=_STYLES.get(event.kind.partition(".")[2], ""))
    about = [
        f"{word} {names[value]}"
        for word, value in (("server", event.server_id), ("storage", event.storage_id), ("on", event.hypervisor_id))
        if value
    ]
    about += [f"{word} {value}" for word, value in (("batch", event.batch_id), ("job", event.job_id)) if value]
    line.append(str(printable("  ".join(about))))
    facts = {name: value for name, value in event.facts.items() if name not in {"version", "state"}}
    told = ", ".join(f"{name} {value}" for name, value in sorted(facts.items()))
    line.append(f"  {printable(told)}" if told else "", style="dim")
    screen.console.print(line, soft_wrap=True)
