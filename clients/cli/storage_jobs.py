"""`bmctl storage test`, `probe`, `check`, `reindex` and `reconcile`: work on a storage that a hypervisor does."""

from typing import Annotated, Any

import typer

from clients.cli import storage_report
from clients.cli.failures import Usage
from clients.cli.options import From, Output, RequestId, ServerFilter, StorageArgument, Wait, request_id
from clients.cli.output import Screen
from clients.cli.results import conclude
from clients.cli.session import Controller, run
from clients.cli.storage_fields import place
from clients.cli.storage_settings import (
    KeyFile,
    KeyPassphraseFile,
    PasswordFile,
    SecretFiles,
    SecretKeyFile,
    write_place,
)
from clients.cli.storage_show import find


def try_storage(
    storage: StorageArgument,
    hypervisor: From,
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Try a storage from a hypervisor.

    Step by step, with the time and rate of each and what to do about one that fails; an empty one is initialized. The first test of an SFTP storage learns its host key.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import TestStorageRequest

    request = TestStorageRequest(storage_id=storage, hypervisor_id=hypervisor, request_id=request_id(id_of_request))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.storages.TestStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait, drawing=storage_report.checklist)

    run(work)


def probe(
    storage: StorageArgument,
    hypervisor: From,
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
    secret_key_file: SecretKeyFile = "",
    password_file: PasswordFile = "",
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
    **given: Any,
) -> None:
    """Look from a hypervisor whether another place carries a storage's repository; nothing is written there.

    Give what differs from the storage's present place. Once it was found there, `storage update` with the same options moves the storage for
    an hour, although backups lie on it. A local folder has to be found by each hypervisor that has backups on it.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import ProbeStorageRequest

    async def work(controller: Controller) -> None:
        present = await find(controller, storage)
        kind = present.WhichOneof("config") or ""
        request = ProbeStorageRequest(
            storage_id=present.storage_id, hypervisor_id=hypervisor, request_id=request_id(id_of_request)
        )
        getattr(request, kind).CopyFrom(getattr(present, kind))
        if not write_place(getattr(request, kind), place(kind, given)):
            raise Usage(field="storage probe", problem="nothing of another place was given")
        SecretFiles(key_file, key_passphrase_file, "", secret_key_file, password_file).changed(
            request.secrets, encrypt=False
        )
        reply = await controller.call(controller.storages.ProbeStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


def check_health(
    storage: StorageArgument,
    hypervisor: Annotated[
        str, typer.Option("--hypervisor", help="From which hypervisor: id or name; whose turn it is when not given.")
    ] = "",
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Look at a storage's health now; nothing is written there."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import CheckStorageRequest

    request = CheckStorageRequest(storage_id=storage, hypervisor_id=hypervisor, request_id=request_id(id_of_request))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.storages.CheckStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


def reindex(
    storage: StorageArgument,
    hypervisor: From,
    server: ServerFilter = "",
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Rebuild the catalog from a storage."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import ReindexStorageRequest

    request = ReindexStorageRequest(
        storage_id=storage, hypervisor_id=hypervisor, server_id=server, request_id=request_id(id_of_request)
    )

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.storages.ReindexStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


def reconcile(
    storage: StorageArgument,
    hypervisor: Annotated[
        str, typer.Option("--hypervisor", help="From which hypervisor: id or name; one that uses it when not given.")
    ] = "",
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Compare the catalog with all that lies on a storage; deletes nothing.

    After the controller's memory was lost or set back, this lets its deletions go on.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import ReconcileStorageRequest

    request = ReconcileStorageRequest(
        storage_id=storage, hypervisor_id=hypervisor, request_id=request_id(id_of_request)
    )

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.storages.ReconcileStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)
