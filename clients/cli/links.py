"""Options that say what an event or a line of a log is about, and their ids: people give names, the controller wants ids."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from clients.cli.session import Controller

AboutServer: TypeAlias = Annotated[
    str, typer.Option("--server", help="Only about this server: id, external id or name.")
]
AboutStorage: TypeAlias = Annotated[str, typer.Option("--storage", help="Only about this storage: id or name.")]
AboutHypervisor: TypeAlias = Annotated[str, typer.Option("--hypervisor", help="Only about this host: id or name.")]
AboutJob: TypeAlias = Annotated[str, typer.Option("--job", help="Only about this job: id.")]
AboutBatch: TypeAlias = Annotated[str, typer.Option("--batch", help="Only about this batch: id.")]
AboutSchedule: TypeAlias = Annotated[str, typer.Option("--schedule", help="Only about this schedule: id.")]


async def server_id(controller: "Controller", server: str) -> str:
    from clients.cli import servers

    return (await servers.find(controller, server)).server_id if server else ""


async def storage_id(controller: "Controller", storage: str) -> str:
    from clients.cli import storage_show

    return (await storage_show.find(controller, storage)).storage_id if storage else ""


async def hypervisor_id(controller: "Controller", hypervisor: str) -> str:
    from clients.cli import servers

    return await servers.find_hypervisor_id(controller, hypervisor) if hypervisor else ""
