"""`bmctl chain …`: deleting a whole chain."""

from typing import Annotated

import typer

from clients.cli import ask, words
from clients.cli.backups import delete_preview
from clients.cli.names import Names
from clients.cli.options import From, Output, RequestId, Wait, Yes, group, request_id
from clients.cli.output import Screen, styled
from clients.cli.results import conclude
from clients.cli.session import Controller, run

app = group()


@app.callback()
def chains() -> None:
    """Whole chains of backups."""


@app.command()
def delete(
    chain: Annotated[str, typer.Argument(metavar="CHAIN", help="Its id, as `bmctl backup show` has it.")],
    server: Annotated[str, typer.Option("--server", help="Whose it is: id, external id or name.")],
    storage: Annotated[str, typer.Option("--storage", "-s", help="Where it lies: id or name.")],
    disk: Annotated[str, typer.Option("--disk", help="Only the backups that have it on this disk.")] = "",
    hypervisor: From = "",
    id_of_request: RequestId = "",
    yes: Yes = False,
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Delete a chain with all its backups.

    Shows all that would go, other disks of the same backups too, and asks.
    """
    from clients.gen.backupmanager.v1.backup_service_pb2 import ChainReference, PreviewDeleteRequest, StartDeleteRequest

    reference = ChainReference(server_id=server, storage_id=storage, chain_id=chain, disk=disk)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        preview = await controller.call(controller.backups.PreviewDelete, PreviewDeleteRequest(chain=reference))
        names = await Names.load(controller, "servers", "storages")
        screen.side.print(delete_preview(screen, preview, names, {one.backup_id for one in preview.backups}))
        if preview.active:
            screen.side.print(styled("  Backups go on with this chain; the next one will be a full.", "bold yellow"))
        count = words.plural(len(preview.backups), "backup")
        ask.confirm(f"Delete {count} ({words.plural(preview.record_count, 'record')} of disks) for good?", yes=yes)
        request = StartDeleteRequest(
            chain=reference,
            confirmation=preview.confirmation,
            hypervisor_id=hypervisor,
            request_id=request_id(id_of_request),
        )
        reply = await controller.call(controller.backups.StartDelete, request)
        await conclude(controller, screen, reply.job_id, wait=wait)

    run(work)
