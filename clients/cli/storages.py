"""`bmctl storage …`: where backups go. The many settings of one are options from storage_settings.py."""

import sys
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from clients.cli import ask, recovery_sheet, storage_health, words
from clients.cli.failures import Usage
from clients.cli.options import Output, RequestId, ServerFilter, StorageArgument, Wait, Yes, group, request_id
from clients.cli.output import Cell, Column, Format, Screen, card, heading, plain, state, state_of
from clients.cli.overrides import (
    Concurrency,
    Consistency,
    Days,
    FullInterval,
    Interval,
    Overrides,
    Window,
    shown,
    title,
)
from clients.cli.results import conclude
from clients.cli.retention import KeepLast, Policy, parse
from clients.cli.session import Controller, run
from clients.cli.storage_settings import (
    Compress,
    CompressionThreads,
    CpuPriority,
    Encrypt,
    IoPriority,
    KeyFile,
    KeyPassphraseFile,
    Level,
    Name,
    PassphraseFile,
    ReadLimit,
    SecretFiles,
    Settings,
    UploadLimit,
    Workers,
    sftp_place,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.storage_pb2 import Storage
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

From: TypeAlias = Annotated[str, typer.Option("--hypervisor", help="From which hypervisor: id or name.")]

app = group()
add = group()
keys = group()
app.add_typer(keys, name="key", help="The keys of an encrypted storage.", no_args_is_help=True)
app.add_typer(add, name="add", help="Add a storage.", invoke_without_command=True, no_args_is_help=True)

_NONE = "No storages yet. `bmctl storage add sftp NAME` adds one."
_FILE_BYTES_MAX = 1 << 20


@add.callback()
def add_file(
    context: typer.Context,
    file: Annotated[str, typer.Option("--file", help="A CreateStorageRequest as JSON; - for stdin.")] = "",
    output: Output = "table",
) -> None:
    """Add a storage: of a type, or from a JSON file."""
    if context.invoked_subcommand is not None:
        if file:
            raise Usage(field="--file", problem="describes a whole storage; give either a file, or a type and options")
        return
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

    if not file:
        raise Usage(field="storage add", problem="give a type (sftp or local), or --file")
    request = CreateStorageRequest()
    _read(file, request)
    SecretFiles().new(request.secrets, sftp=request.WhichOneof("config") == "sftp", encrypt=request.encryption_enabled)
    _create(request, output)


@add.command("sftp")
def add_sftp(
    name: Name,
    host: Annotated[str, typer.Option("--host", help="Name or address of the SSH server.")],
    username: Annotated[str, typer.Option("--username", help="User there.")],
    path: Annotated[str, typer.Option("--path", help="Absolute path there.")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port.")] = 22,
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
    host_key: Annotated[
        str, typer.Option("--host-key", help="Its host key, `type base64`; learnt at the first test when not given.")
    ] = "",
    bind_address: Annotated[str, typer.Option("--bind-address", help="Source address of the connections.")] = "",
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = "",
    compress: Compress = None,
    level: Level = None,
    compression_threads: CompressionThreads = None,
    workers: Workers = None,
    upload_limit: UploadLimit = "",
    read_limit: ReadLimit = "",
    io_priority: IoPriority = None,
    cpu_priority: CpuPriority = None,
    output: Output = "table",
) -> None:
    """Add an SSH server with SFTP."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

    request = CreateStorageRequest(name=name, encryption_enabled=encrypt)
    sftp_place(
        request.sftp, host=host, port=port, username=username, path=path, host_key=host_key, bind_address=bind_address
    )
    Settings(
        compress, level, compression_threads, workers, upload_limit, read_limit, io_priority, cpu_priority
    ).apply_new(request)
    SecretFiles(key_file, key_passphrase_file, passphrase_file).new(request.secrets, sftp=True, encrypt=encrypt)
    _create(request, output)


@add.command("local")
def add_local(
    name: Name,
    path: Annotated[str, typer.Option("--path", help="Absolute path on each hypervisor.")],
    allow_local: Annotated[
        bool, typer.Option("--allow-local", help="Accept that a folder does not survive the loss of its hypervisor.")
    ] = False,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = "",
    compress: Compress = None,
    level: Level = None,
    compression_threads: CompressionThreads = None,
    workers: Workers = None,
    upload_limit: UploadLimit = "",
    read_limit: ReadLimit = "",
    io_priority: IoPriority = None,
    cpu_priority: CpuPriority = None,
    output: Output = "table",
) -> None:
    """Add a folder on the hypervisors.

    For tests, and for mounts of something that outlives the hypervisor.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

    request = CreateStorageRequest(name=name, encryption_enabled=encrypt, allow_local=allow_local)
    request.local.path = path
    Settings(
        compress, level, compression_threads, workers, upload_limit, read_limit, io_priority, cpu_priority
    ).apply_new(request)
    SecretFiles(passphrase=passphrase_file).new(request.secrets, sftp=False, encrypt=encrypt)
    _create(request, output)


@app.command("list")
def list_storages(output: Output = "table") -> None:
    """List storages by name."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import ListStoragesRequest

    async def work(controller: Controller) -> None:
        reply, _ = await controller.every(controller.storages.ListStorages, ListStoragesRequest(), "storages")
        Screen(output).show_list(reply, "storages", _COLUMNS, empty=_NONE)

    run(work)


@app.command()
def show(storage: StorageArgument, output: Output = "table") -> None:
    """Show one storage.

    Of its secrets only that they are set, with a fingerprint.
    """

    async def work(controller: Controller) -> None:
        _show(Screen(output), await find(controller, storage))

    run(work)


@app.command()
def update(
    storage: StorageArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Disabled refuses everything.")] = None,
    read_only: Annotated[
        bool | None, typer.Option("--read-only/--read-write", help="Read-only allows restores and checks.")
    ] = None,
    path: Annotated[str | None, typer.Option("--path", help="New path, while no backups lie there.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="SFTP: new host.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="SFTP: new port.")] = None,
    username: Annotated[str | None, typer.Option("--username", help="SFTP: new user.")] = None,
    host_key: Annotated[
        str | None, typer.Option("--host-key", help="SFTP: pin this host key; empty learns it.")
    ] = None,
    bind_address: Annotated[str | None, typer.Option("--bind-address", help="SFTP: new source address.")] = None,
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
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
) -> None:
    """Change a storage.

    What is not given stays as it is.
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
    files = SecretFiles(key_file, key_passphrase_file, passphrase_file)
    sftp_only = {"host": host, "port": port, "username": username, "host_key": host_key, "bind_address": bind_address}

    async def work(controller: Controller) -> None:
        request = UpdateStorageRequest(storage=await find(controller, storage))
        changed, paths = request.storage, request.update_mask.paths
        flags = {"name": name, "enabled": enable, "read_only": read_only}
        for field, value in flags.items():
            if value is not None:
                setattr(changed, field, value)
                paths.append(field)
        if changed.WhichOneof("config") == "sftp":
            if sftp_place(changed.sftp, path=path, **sftp_only):
                paths.append("sftp")
        elif any(value is not None for value in sftp_only.values()):
            raise Usage(field="storage update", problem=f"{changed.name} is no SFTP storage")
        elif path is not None:
            changed.local.path = path
            paths.append("local")
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
        _show(Screen(output), reply.storage)

    run(work)


@app.command("set")
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
        _show(Screen(output), reply.storage)

    run(work)


@app.command()
def delete(storage: StorageArgument, yes: Yes = False, output: Output = "table") -> None:
    """Forget a storage; what lies there stays."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import DeleteStorageRequest

    async def work(controller: Controller) -> None:
        found = await find(controller, storage)
        ask.confirm(f"Forget storage {found.name} ({_place(found)})? What lies there stays.", yes=yes)
        await controller.call(controller.storages.DeleteStorage, DeleteStorageRequest(storage_id=found.storage_id))
        Screen(output).show({"storage_id": found.storage_id}, lambda: f"Storage {found.name} is forgotten.")

    run(work)


@app.command("test")
def try_storage(
    storage: StorageArgument,
    hypervisor: From,
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Try a storage from a hypervisor.

    Step by step; an empty one is initialized. The first test of an SFTP storage learns its host key.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import TestStorageRequest

    request = TestStorageRequest(storage_id=storage, hypervisor_id=hypervisor, request_id=request_id(id_of_request))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.storages.TestStorage, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


@app.command()
def health(
    storage: Annotated[str, typer.Argument(metavar="[STORAGE]", help="Id or name; all when not given.")] = "",
    output: Output = "table",
) -> None:
    """Show whether hypervisors get into storages, and what fills them.

    Of one storage: the last check from each hypervisor, and the servers that take most room.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import (
        ListServerUsagesRequest,
        ListStorageChecksRequest,
        ListStoragesRequest,
    )

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        if not storage:
            reply, _ = await controller.every(controller.storages.ListStorages, ListStoragesRequest(), "storages")
            screen.show_list(reply, "storages", storage_health.columns(screen.now), empty=_NONE)
            return
        found = await find(controller, storage)
        asked = ListStorageChecksRequest(storage_id=found.storage_id)
        checks, _ = await controller.every(controller.storages.ListStorageChecks, asked, "checks")
        largest = ListServerUsagesRequest(storage_id=found.storage_id)
        usages, _ = await controller.every(controller.storages.ListServerUsages, largest, "usages", 10)
        document = {
            "storage_id": found.storage_id,
            "health": plain(found.health),
            "usage": plain(found.usage),
            "checks": [plain(one) for one in checks.checks],
            "largest_servers": [plain(one) for one in usages.usages],
        }
        screen.show(document, lambda: storage_health.show(screen, found, checks.checks, usages.usages))

    run(work)


@app.command("check")
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


@app.command()
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


@app.command()
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


async def find(controller: Controller, storage: str) -> "Storage":
    """Return a storage by id or name. Raises CallRefused."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import GetStorageRequest

    return (await controller.call(controller.storages.GetStorage, GetStorageRequest(storage_id=storage))).storage


def _create(request: "CreateStorageRequest", output: Format) -> None:
    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.storages.CreateStorage, request)
        _show(screen, reply.storage)
        screen.note(f"Try it with `bmctl storage test {reply.storage.name} --hypervisor NAME --wait`.")

    run(work)


def _read(file: str, request: "CreateStorageRequest") -> None:
    """Fill a request from a JSON file. Raises Usage, which names a field and never quotes a value: it may be a secret."""
    from google.protobuf import json_format

    text = ask.read_file(file, option="--file", bytes_max=_FILE_BYTES_MAX)
    try:
        json_format.Parse(text, request)
    except json_format.ParseError as error:
        problem = str(error).partition(": ")[0].partition("\n")[0]
        raise Usage(field="--file", problem=f"{file} does not fit: {problem}") from None


def _place(storage: "Storage") -> str:
    """Return a storage's type and place in one line."""
    if storage.WhichOneof("config") == "sftp":
        place = storage.sftp
        port = f":{place.port}" if place.port not in {0, 22} else ""
        return f"sftp://{place.username}@{place.host}{port}{place.path}"
    return f"local {storage.local.path}"


def _state(storage: "Storage") -> "Text":
    return state("disabled" if not storage.enabled else "read-only" if storage.read_only else "enabled")


_COLUMNS = (
    Column("Name", lambda one: one.name),
    Column("State", _state),
    Column("Health", lambda one: state_of(one.health)),
    Column("Free", lambda one: words.size(one.usage.free_bytes), right=True, rank=1),
    Column("Backups", lambda one: str(one.backup_count), right=True),
    Column("Stored", lambda one: words.size(one.stored_bytes), right=True),
    Column("Encrypted", lambda one: "yes" if one.encryption.enabled else "no", rank=2),
    Column("Place", _place, rank=1),
    Column("Storage", lambda one: one.storage_id, rank=3, whole=True),
)


def _show(screen: Screen, storage: "Storage") -> None:
    screen.show({"storage": plain(storage)}, lambda: _card(screen, storage))


def _card(screen: Screen, storage: "Storage") -> "RenderableType":
    compression, limits = storage.compression, storage.limits
    facts: tuple[tuple[str, Cell], ...] = (
        ("Storage", storage.storage_id),
        ("Place", _place(storage)),
        ("Host key", storage.sftp.host_key),
        ("From", storage.sftp.bind_address),
        (
            "Backups",
            f"{storage.backup_count}, {words.size(storage.stored_bytes)} stored" if storage.backup_count else "none",
        ),
        ("Health", storage_health.sentence(storage, screen.now)),
        ("Usage", storage_health.usage_line(storage.usage)),
        ("Compression", f"zstd, level {compression.level or 3}" if compression.enabled else "off"),
        (
            "Encryption",
            f"on, key {storage.encryption.key_id or 'not made yet'}" if storage.encryption.enabled else "off",
        ),
        ("Workers", str(limits.worker_threads or 4)),
        *_defaults(storage),
        ("Upload limit", words.rate(limits.bandwidth_bytes_per_second)),
        ("Read limit", words.rate(limits.read_bytes_per_second)),
        ("Disk priority", words.enum_label(limits, "io_priority")),
        ("CPU priority", words.enum_label(limits, "cpu_priority")),
        ("Secrets set", "\n".join(f"{one.name}  {one.fingerprint}" for one in storage.secrets)),
        ("Repository", storage.repository_id),
        ("Made", words.long_time(words.set_time(storage, "create_time"), screen.now)),
        ("Changed", words.long_time(words.set_time(storage, "update_time"), screen.now)),
    )
    return card(heading(storage.name, _state(storage)), facts)


def _defaults(storage: "Storage") -> list[tuple[str, str]]:
    """Return what the storage says of its jobs, as facts."""
    given = [field.name for field, _ in storage.defaults.ListFields()]
    return [(title(name).capitalize(), shown(name, storage.defaults)) for name in given]
