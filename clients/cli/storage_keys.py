"""`bmctl storage key …`: the keys of an encrypted storage, closed, and what opens them."""

import sys

from clients.cli import ask, recovery_sheet
from clients.cli.options import Output, StorageArgument, group
from clients.cli.output import Screen, plain
from clients.cli.session import Controller, run
from clients.cli.storage_settings import AddedPassphraseFile
from clients.cli.storage_show import find

app = group()


@app.command("export")
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


@app.command("add-passphrase")
def add_passphrase(
    storage: StorageArgument, passphrase_file: AddedPassphraseFile = "", output: Output = "table"
) -> None:
    """Let a further passphrase open the key of an encrypted storage.

    The key stays, and so does what opens it already. Later recovery sheets are for both.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import UpdateStorageRequest

    async def work(controller: Controller) -> None:
        request = UpdateStorageRequest(storage=await find(controller, storage))
        request.secrets.added_passphrase = ask.secret(
            "the further passphrase",
            option="--passphrase-file",
            file=passphrase_file,
            variable="BMCTL_ADDED_PASSPHRASE",
            twice=True,
        )
        found = (await controller.call(controller.storages.UpdateStorage, request)).storage
        Screen(output).show(
            {"storage_id": found.storage_id},
            lambda: (
                f"A further passphrase opens the key of {found.name}. Print a new sheet: bmctl storage key export {found.name}"
            ),
        )

    run(work)
