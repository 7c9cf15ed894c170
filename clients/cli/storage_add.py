"""`bmctl storage add …`: a storage of a type, or one from a file. Its many settings are options from storage_settings.py."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import ask
from clients.cli.failures import Usage
from clients.cli.options import Output, group
from clients.cli.output import Format, Screen
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
from clients.cli.storage_show import show_storage

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

add = group()

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


def _create(request: "CreateStorageRequest", output: Format) -> None:
    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.storages.CreateStorage, request)
        show_storage(screen, reply.storage)
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
