"""`bmctl overview` and `bmctl diagnose`: how things stand, and why a server is not backed up."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import words
from clients.cli.options import Output, ServerArgument
from clients.cli.output import Screen, card, heading, plain, styled
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.overview_pb2 import Finding, Overview
    from clients.gen.backupmanager.v1.overview_service_pb2 import DiagnoseServerResponse

PIPE_WIDTH = 140  # nobody reads a pipe at a width, and a screen needs one
_MARKS = {"ok": ("✓", "green"), "waits": ("◷", "cyan"), "warning": ("!", "yellow"), "blocks": ("✗", "bold red")}


def overview(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.5, max=3600, help="Seconds between two refreshes.")] = 3.0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="Rows of each list.")] = 8,
    output: Output = "table",
) -> None:
    """Show how everything stands.

    With --watch, JSON is one document a line.
    """

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        if watch:
            await _watch(controller, screen, every, limit)
            return
        data = await _ask(controller, limit)
        screen.show({"overview": plain(data)}, lambda: _render(screen, data))

    run(work)


def diagnose(server: ServerArgument, output: Output = "table") -> None:
    """Say why a server is, or is not, backed up.

    The exit code is 0 also where something stands in the way.
    """
    from clients.gen.backupmanager.v1.overview_service_pb2 import DiagnoseServerRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.overview.DiagnoseServer, DiagnoseServerRequest(server_id=server))
        screen.show(reply, lambda: _diagnosis(screen, reply))

    run(work)


async def _ask(controller: Controller, limit: int) -> "Overview":
    from clients.gen.backupmanager.v1.overview_service_pb2 import GetOverviewRequest

    return (await controller.call(controller.overview.GetOverview, GetOverviewRequest(list_size=limit))).overview


async def _watch(controller: Controller, screen: Screen, every: float, limit: int) -> None:
    """Show the overview again and again; a controller that does not answer is asked again, and said to be away."""
    import asyncio

    from rich.live import Live

    from clients.errors import CallRefused

    data = await _ask(controller, limit)
    if screen.json or not screen.console.is_terminal:
        while True:
            text = json.dumps({"overview": plain(data)}, ensure_ascii=False) if screen.json else None
            print(text, flush=True) if text else screen.console.print(_render(screen, data))
            await asyncio.sleep(every)
            data = await _ask(controller, limit)
    try:
        with Live(console=screen.console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            note = ""
            while True:
                live.update(_render(screen, data, note), refresh=True)
                await asyncio.sleep(every)
                try:
                    data, note = await _ask(controller, limit), ""
                except CallRefused as error:
                    if error.status.name != "UNAVAILABLE":
                        raise
                    note = "● no answer from the controller, trying again"
    except asyncio.CancelledError:
        return  # Ctrl-C is how one leaves


def _render(screen: Screen, data: "Overview", note: str = "") -> "RenderableType":
    from clients.cli.dashboard import render

    width = screen.console.width if screen.console.is_terminal else PIPE_WIDTH
    return render(data, data.time.ToDatetime(screen.now.tzinfo), width, note)


def _diagnosis(screen: Screen, reply: "DiagnoseServerResponse") -> "RenderableType":
    verdict = (
        styled("✓ will be backed up", "green") if reply.will_be_backed_up else styled("✗ is not backed up", "bold red")
    )
    facts = (
        ("Server", reply.server_id),
        ("Answer", reply.summary),
        ("Next backup", words.long_time(words.set_time(reply, "next_time"), screen.now)),
    )
    return card(heading(reply.server_name, verdict), facts, "", *(_finding(one) for one in reply.findings))


def _finding(one: "Finding") -> "RenderableType":
    from rich.padding import Padding
    from rich.text import Text

    mark, style = _MARKS.get(words.enum_label(one, "state"), ("?", ""))
    line = Text(f"{mark} ", style=style).append(f"{one.step:<9} ", style="dim").append(one.sentence, style="not dim")
    if one.remedy:
        line.append(f"\n            → {one.remedy}", style="cyan")
    return Padding(line, (0, 0, 0, 2))
