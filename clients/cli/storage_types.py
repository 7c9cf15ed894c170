"""`bmctl storage types`: what each type of storage can do, as the controller says it (S2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.cli.options import Output  # noqa: TC001  # typer reads the annotation when the verb is run
from clients.cli.output import Screen, card, styled
from clients.cli.session import Controller, run
from clients.cli.storage_fields import ABOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from clients.cli.output import Cell
    from clients.gen.backupmanager.v1.storage_pb2 import StorageCapabilities
    from clients.gen.backupmanager.v1.system_service_pb2 import GetCapabilitiesResponse, StorageTypeCapabilities


def list_types(output: Output = "table") -> None:
    """Show what each type of storage can do."""
    from clients.gen.backupmanager.v1.system_service_pb2 import GetCapabilitiesRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.system.GetCapabilities, GetCapabilitiesRequest())
        screen.show(reply, lambda: _matrix(reply))

    run(work)


def _matrix(reply: GetCapabilitiesResponse) -> RenderableType:
    """Return a table with a line for each ability and a column for each type: abilities may become more, and stay readable."""
    from rich import box
    from rich.table import Table

    types: Sequence[StorageTypeCapabilities] = reply.storage_types
    made = Table(box=box.SIMPLE_HEAD, header_style="bold dim", border_style="dim", show_edge=False, pad_edge=False)
    made.add_column("Can")
    for one in types:
        made.add_column(one.type, justify="center")
    for field in reply.storage_types[0].capabilities.DESCRIPTOR.fields if types else ():
        if field.name != "depends_on_server":
            made.add_row(field.name.replace("_", " "), *(_cell(one.capabilities, field.name) for one in types))
    legend = [(one.type, ABOUT.get(one.type, "")) for one in types]
    return card("", legend, made)


def _cell(can: StorageCapabilities, name: str) -> Cell:
    if name in can.depends_on_server:
        return styled("as the server", "yellow")
    return styled("✓", "green") if getattr(can, name) else styled("-", "dim")
