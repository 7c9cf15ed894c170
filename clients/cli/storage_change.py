"""`bmctl storage update`, `set` and `delete`: changing a storage. What is not given stays as it is, secrets as well."""

from typing import Annotated, Any

import typer

from clients.cli import ask, words
from clients.cli.failures import Usage
from clients.cli.options import Output, StorageArgument, Yes
from clients.cli.output import Screen
from clients.cli.overrides import (
    Concurrency,
    Consistency,
    Days,
    FullInterval,
    Interval,
    Overrides,
    Window,
)
from clients.cli.retention import KeepLast, Policy, parse
from clients.cli.session import Controller, run
from clients.cli.storage_fields import place
from clients.cli.storage_settings import (
    Compress,
    CompressionThreads,
    CpuPriority,
    IoPriority,
    KeyFile,
    KeyPassphraseFile,
    Level,
    PassphraseFile,
    PasswordFile,
    ReadLimit,
    SecretFiles,
    SecretKeyFile,
    Settings,
    UploadLimit,
    Workers,
    write_place,
)
from clients.cli.storage_show import find, place_of, show_storage


def update(
    storage: StorageArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Disabled refuses everything.")] = None,
    read_only: Annotated[
        bool | None, typer.Option("--read-only/--read-write", help="Read-only allows restores and checks.")
    ] = None,
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
    secret_key_file: SecretKeyFile = "",
    password_file: PasswordFile = "",
    encrypt: Annotated[
        bool | None, typer.Option("--encrypt/--no-encrypt", help="Encrypt; while no backups lie there.")
    ] = None,
    passphrase_file: PassphraseFile = "",
    compress: Compress = None,
    level: Level = None,
    compression_threads: CompressionThreads = None,
    workers: Workers = None,
    upload_limit: UploadLimit = "",
    read_limit: ReadLimit = "",
    io_priority: IoPriority = None,
    cpu_priority: CpuPriority = None,
    interval: Interval = "",
    window: Window = "",
    days: Days = "",
    consistency: Consistency = "",
    full_interval: FullInterval = "",
    concurrency: Concurrency = "",
    output: Output = "table",
    **given: Any,
) -> None:
    """Change a storage.

    What is not given stays as it is, secrets as well. The place changes only while no backups lie there.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import UpdateStorageRequest

    settings = Settings(
        compress, level, compression_threads, workers, upload_limit, read_limit, io_priority, cpu_priority
    )
    defaults = Overrides(
        interval_hours=interval,
        consistency=consistency,
        full_interval_days=full_interval,
        backup_concurrency=concurrency,
        window=window,
        allowed_days=days,
    )
    files = SecretFiles(key_file, key_passphrase_file, passphrase_file, secret_key_file, password_file)

    async def work(controller: Controller) -> None:
        request = UpdateStorageRequest(storage=await find(controller, storage))
        changed, paths = request.storage, request.update_mask.paths
        flags = {"name": name, "enabled": enable, "read_only": read_only}
        for field, value in flags.items():
            if value is not None:
                setattr(changed, field, value)
                paths.append(field)
        kind = changed.WhichOneof("config") or ""
        if write_place(getattr(changed, kind), place(kind, given)):
            paths.append(kind)
        if settings.changes_compression:
            settings.compression(changed.compression)
            paths.append("compression")
        if settings.changes_limits:
            settings.limits(changed.limits)
            paths.append("limits")
        if defaults.write(changed.defaults):
            paths.append("defaults")
        if encrypt is not None:
            changed.encryption.enabled = encrypt
            paths.append("encryption.enabled")
        files.changed(request.secrets, encrypt=bool(encrypt))
        if not paths and not request.secrets.ByteSize():
            raise Usage(field="storage update", problem="nothing to change was given")
        reply = await controller.call(controller.storages.UpdateStorage, request)
        screen = Screen(output)
        show_storage(screen, reply.storage)
        _tell_revoked(screen, reply.revoked_ticket_count)

    run(work)


def _tell_revoked(screen: Screen, count: int) -> None:
    """Say that restore tickets went with a storage's way in, if any did."""
    if count and not screen.json:
        screen.side.print(f"{words.plural(count, 'restore ticket')} revoked: bmctl ticket list --all")


def set_retention(
    storage: StorageArgument,
    policy: Policy = None,
    keep_last: KeepLast = None,
    delete_from: Annotated[
        str | None, typer.Option("--delete-from", help="The only hypervisor that deletes there; empty for any.")
    ] = None,
    output: Output = "table",
) -> None:
    """Set what is kept on a storage, and who deletes there.

    `bmctl retention simulate` shows what a policy would keep.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import UpdateStorageRequest

    async def work(controller: Controller) -> None:
        request = UpdateStorageRequest(storage=await find(controller, storage))
        if policy is not None:
            request.storage.retention.CopyFrom(parse(policy))
            request.update_mask.paths.append("retention")
        if keep_last is not None:
            request.storage.keep_last = keep_last
            request.update_mask.paths.append("keep_last")
        if delete_from is not None:
            request.storage.delete_hypervisor_id = delete_from
            request.update_mask.paths.append("delete_hypervisor_id")
        if not request.update_mask.paths:
            raise Usage(field="storage set", problem="nothing to change was given")
        reply = await controller.call(controller.storages.UpdateStorage, request)
        show_storage(Screen(output), reply.storage)

    run(work)


def delete(storage: StorageArgument, yes: Yes = False, output: Output = "table") -> None:
    """Forget a storage; what lies there stays."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import DeleteStorageRequest

    async def work(controller: Controller) -> None:
        found = await find(controller, storage)
        ask.confirm(f"Forget storage {found.name} ({place_of(found)})? What lies there stays.", yes=yes)
        request = DeleteStorageRequest(storage_id=found.storage_id)
        reply = await controller.call(controller.storages.DeleteStorage, request)
        screen = Screen(output)
        screen.show({"storage_id": found.storage_id}, lambda: f"Storage {found.name} is forgotten.")
        _tell_revoked(screen, reply.revoked_ticket_count)

    run(work)
