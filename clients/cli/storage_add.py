"""`bmctl storage add …`: a storage of a type, or one from a file. Its many settings are options from storage_settings.py."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import ask, storage_file, storage_questions
from clients.cli.failures import Usage
from clients.cli.options import Output, group
from clients.cli.output import Format, Screen
from clients.cli.session import Controller, run
from clients.cli.storage_fields import FIELDS, own_parameters, parameters, place, with_parameters
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
    PasswordFile,
    ReadLimit,
    SecretFiles,
    SecretKeyFile,
    Settings,
    UploadLimit,
    Workers,
    write_place,
)
from clients.cli.storage_show import show_storage

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

add = group()

_SECRETS: dict[str, tuple[str, ...]] = {
    "sftp": ("key_file", "key_passphrase_file"),
    "s3": ("secret_key_file",),
    "ftp": ("password_file",),
    "rclone": (),
    "local": ("allow_local",),
}
_HELP = {
    "sftp": "Add an SSH server with SFTP.",
    "s3": "Add an S3 bucket: AWS, MinIO, Wasabi, R2, B2, Ceph and the like.",
    "ftp": "Add an FTP server, by TLS unless that is switched off.",
    "rclone": "Add a remote of the rclone configuration on the hypervisors.",
    "local": "Add a folder on the hypervisors.\n\nFor tests, and for mounts of something that outlives the hypervisor.",
}


@add.callback()
def add_file(
    context: typer.Context,
    file: Annotated[
        str, typer.Option("--file", help="A storage's fields as YAML or JSON; - for stdin. Secrets may stay out of it.")
    ] = "",
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
    secret_key_file: SecretKeyFile = "",
    password_file: PasswordFile = "",
    passphrase_file: PassphraseFile = "",
    output: Output = "table",
) -> None:
    """Add a storage: of a type, or from a YAML or JSON file. On a terminal, what is not given is asked for."""
    files = SecretFiles(key_file, key_passphrase_file, passphrase_file, secret_key_file, password_file)
    if context.invoked_subcommand is not None:
        if file:
            raise Usage(field="--file", problem="describes a whole storage; give either a file, or a type and options")
        if files != SecretFiles():
            raise Usage(field="storage add", problem="give the files of secrets after the type and its NAME")
        return
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

    if not file and ask.possible():
        _add_one(storage_questions.which_type(), "", {}, files, Settings(), output=output)
        return
    if not file:
        raise Usage(field="storage add", problem=f"give a type ({', '.join(FIELDS)}), or --file")
    request = CreateStorageRequest()
    storage_file.fill(file, request)
    files.new(request.secrets, request.WhichOneof("config"), encrypt=request.encryption_enabled)
    _create(request, output, offer=False)


def _new(
    kind: str,
    name: Name = "",
    key_file: KeyFile = "",
    key_passphrase_file: KeyPassphraseFile = "",
    secret_key_file: SecretKeyFile = "",
    password_file: PasswordFile = "",
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
    **place: Any,
) -> None:
    settings = Settings(
        compress, level, compression_threads, workers, upload_limit, read_limit, io_priority, cpu_priority
    )
    files = SecretFiles(key_file, key_passphrase_file, passphrase_file, secret_key_file, password_file)
    _add_one(kind, name, place, files, settings, encrypt=encrypt, allow_local=allow_local, output=output)


def _verb(kind: str) -> Callable[..., None]:
    """Return the verb that adds a storage of a type: with the options of its fields, and of the secrets that it has."""
    others = {one for secrets in _SECRETS.values() for one in secrets} - set(_SECRETS[kind])
    first, *rest = own_parameters(_new, {*others, "kind"})
    verb = with_parameters(functools.partial(_new, kind), [first, *parameters([kind]), *rest])
    verb.__doc__ = _HELP[kind]
    return verb


for _kind in FIELDS:
    add.command(_kind)(_verb(_kind))


def _add_one(
    kind: str,
    name: str,
    given: Mapping[str, Any],
    files: SecretFiles,
    settings: Settings,
    *,
    encrypt: bool = False,
    allow_local: bool = False,
    output: Format = "table",
) -> None:
    """Add a storage. Where something it needs is missing, all that is usual is asked, if there is somebody to ask."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

    values = place(kind, given)
    missing = [field.flag for field in FIELDS[kind] if field.required and field.name not in values]
    missing = missing if name else ["NAME", *missing]
    guided = bool(missing) and ask.possible() and output == "table"
    if missing and not guided:
        raise Usage(field=missing[0], problem="is needed")
    if guided:
        name = name or storage_questions.name()
        values = storage_questions.place(kind, values)
        if kind == "local":
            allow_local = allow_local or ask.yes("It does not survive the loss of its hypervisor. Allow it")
        if kind == "sftp" and not files.has_key:
            files = replace(files, key=storage_questions.key_file())
        encrypt = encrypt or ask.yes("Encrypt backups? The passphrase cannot be recovered. Encrypt")
    request = CreateStorageRequest(name=name, encryption_enabled=encrypt, allow_local=allow_local)
    write_place(getattr(request, kind), values)
    getattr(request, kind).SetInParent()
    settings.apply_new(request)
    files.new(request.secrets, kind, encrypt=encrypt)
    _create(request, output, offer=guided)


def _create(request: "CreateStorageRequest", output: Format, *, offer: bool) -> None:
    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.storages.CreateStorage, request)
        show_storage(screen, reply.storage)
        if offer:
            await storage_questions.offer_test(controller, screen, reply.storage)
            return
        screen.note(f"Try it with `bmctl storage test {reply.storage.name} --hypervisor NAME --wait`.")

    run(work)
