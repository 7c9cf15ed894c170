"""`bmctl storage test`, `check`, `reindex` and `reconcile`: work on a storage that a hypervisor does."""

from typing import Annotated

import typer

from clients.cli import storage_report
from clients.cli.options import From, Output, RequestId, ServerFilter, StorageArgument, Wait, request_id
from clients.cli.output import Screen
from clients.cli.results import conclude
from clients.cli.session import Controller, run


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
