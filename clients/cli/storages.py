"""`bmctl storage …`: where backups go. The verbs stand by subject: adding, showing, changing, and the work on one.

storage_add.py      add                              storage_settings.py   the options and secrets of a storage
storage_show.py     list, show, health               storage_health.py     how health and usage read
storage_change.py   update, set, delete
storage_jobs.py     test, check, reindex, reconcile
"""

import sys

from clients.cli import recovery_sheet, storage_add, storage_change, storage_jobs, storage_show, storage_types
from clients.cli.options import Output, StorageArgument, group
from clients.cli.output import Screen, plain
from clients.cli.session import Controller, run
from clients.cli.storage_fields import FIELDS, own_parameters, parameters, with_parameters

app = group()
keys = group()
app.add_typer(keys, name="key", help="The keys of an encrypted storage.", no_args_is_help=True)
app.add_typer(storage_add.add, name="add", help="Add a storage.", invoke_without_command=True, no_args_is_help=False)
app.command("list")(storage_show.list_storages)
app.command("types")(storage_types.list_types)
app.command()(storage_show.show)
app.command()(with_parameters(storage_change.update, [*own_parameters(storage_change.update), *parameters(FIELDS)]))
app.command("set")(storage_change.set_retention)
app.command()(storage_change.delete)
app.command("test")(storage_jobs.try_storage)
app.command()(storage_show.health)
app.command("check")(storage_jobs.check_health)
app.command()(storage_jobs.reindex)
app.command()(storage_jobs.reconcile)


@keys.command("export")
def export_key(storage: StorageArgument, output: Output = "table") -> None:
    """Print a recovery sheet: what a restore without any controller needs beside the passphrase.

    It holds the storage's key as it lies there, closed by the passphrase; neither of them is printed open.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import ExportStorageKeyRequest

    async def work(controller: Controller) -> None:
        request = ExportStorageKeyRequest(storage_id=storage)
        reply = await controller.call(controller.storages.ExportStorageKey, request)
        if output == "json":
            Screen(output).show(plain(reply), lambda: None)
        else:
            sys.stdout.write(recovery_sheet.text(reply))  # bare: what is printed is typed in again one day

    run(work)
