"""The settings of a storage as options of `bmctl storage add` and `bmctl storage update`, and where its secrets come from.

private key              --key-file F              BMCTL_SFTP_PRIVATE_KEY       no prompt: it has many lines
S3's secret key          --secret-key-file F       BMCTL_S3_SECRET_KEY          prompt
FTP's password           --password-file F         BMCTL_FTP_PASSWORD           prompt
the key's passphrase     --key-passphrase-file F   BMCTL_SFTP_KEY_PASSPHRASE    prompt, if the key has one
encryption passphrase    --passphrase-file F       BMCTL_ENCRYPTION_PASSPHRASE  prompt, twice
a further passphrase     --passphrase-file F       BMCTL_ADDED_PASSPHRASE       prompt, twice (`storage key add-passphrase`)
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from clients.cli import ask, options, words
from clients.cli.failures import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clients.gen.backupmanager.v1.storage_pb2 import Compression, StorageLimits
    from clients.gen.backupmanager.v1.storage_service_pb2 import StorageSecrets

Priority: TypeAlias = Literal["normal", "low", "idle"]

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="Unique name; asked for on a terminal.")]
KeyFile: TypeAlias = Annotated[str, typer.Option("--key-file", help="SSH private key, PEM; - for stdin.")]
KeyPassphraseFile: TypeAlias = Annotated[
    str, typer.Option("--key-passphrase-file", help="Its passphrase, if it has one.")
]
SecretKeyFile: TypeAlias = Annotated[str, typer.Option("--secret-key-file", help="S3's secret key; - for stdin.")]
PasswordFile: TypeAlias = Annotated[str, typer.Option("--password-file", help="The user's password; - for stdin.")]
Encrypt: TypeAlias = Annotated[bool, typer.Option("--encrypt", help="Encrypt new backups.")]
PassphraseFile: TypeAlias = Annotated[
    str, typer.Option("--passphrase-file", help="Encryption passphrase; without it backups are lost, so keep it.")
]
AddedPassphraseFile: TypeAlias = Annotated[
    str, typer.Option("--passphrase-file", help="The further passphrase; - for stdin.")
]
Compress: TypeAlias = Annotated[bool | None, typer.Option("--compress/--no-compress", help="Compress; on by default.")]
Level: TypeAlias = Annotated[int | None, typer.Option("--compression-level", min=1, max=19, help="zstd's; default 3.")]
CompressionThreads: TypeAlias = Annotated[
    int | None, typer.Option("--compression-threads", min=1, help="Frames of one server compressed at once; default 1.")
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option("--workers", min=1, max=64, help="Threads that read and send; default 4.")
]
UploadLimit: TypeAlias = Annotated[str, typer.Option("--upload-limit", help="Bytes a second: 20M, 1G; 0 for none.")]
ReadLimit: TypeAlias = Annotated[str, typer.Option("--read-limit", help="Disk reads, bytes a second; 0 for none.")]
IoPriority: TypeAlias = Annotated[Priority | None, typer.Option("--io-priority", help="Priority of disk access.")]
CpuPriority: TypeAlias = Annotated[Priority | None, typer.Option("--cpu-priority", help="Priority of computing.")]
_OPENSSH_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that were given; None or "" is kept as it is."""

    compress: bool | None = None
    level: int | None = None
    compression_threads: int | None = None
    workers: int | None = None
    upload_limit: str = ""
    read_limit: str = ""
    io_priority: Priority | None = None
    cpu_priority: Priority | None = None

    @property
    def changes_compression(self) -> bool:
        return any(one is not None for one in (self.compress, self.level, self.compression_threads))

    @property
    def changes_limits(self) -> bool:
        given = (self.workers, self.io_priority, self.cpu_priority)
        return any(one is not None for one in given) or bool(self.upload_limit or self.read_limit)

    def compression(self, target: Compression) -> None:
        """Write what was given into `target`; asking for a level asks for compression."""
        target.enabled = self.compress if self.compress is not None else target.enabled or self.level is not None
        target.level = self.level or target.level
        target.threads = self.compression_threads or target.threads

    def limits(self, target: StorageLimits) -> None:
        """Write what was given into `target`. Raises Usage for a rate that is none."""
        from clients.gen.backupmanager.v1.storage_pb2 import WorkPriority

        target.worker_threads = self.workers or target.worker_threads
        upload = options.parsed("--upload-limit", self.upload_limit, words.parse_rate)
        read = options.parsed("--read-limit", self.read_limit, words.parse_rate)
        target.bandwidth_bytes_per_second = target.bandwidth_bytes_per_second if upload is None else upload
        target.read_bytes_per_second = target.read_bytes_per_second if read is None else read
        if self.io_priority:
            target.io_priority = words.enum_value(WorkPriority, "WORK_PRIORITY_", self.io_priority)
        if self.cpu_priority:
            target.cpu_priority = words.enum_value(WorkPriority, "WORK_PRIORITY_", self.cpu_priority)

    def apply_new(self, request: Any) -> None:
        """Write the settings into a new storage's request; what was not given stays the controller's to choose."""
        if self.changes_compression:
            if not request.HasField("compression"):
                request.compression.enabled = True
            self.compression(request.compression)
        if self.changes_limits:
            self.limits(request.limits)


def write_place(target: Any, values: Mapping[str, Any]) -> bool:
    """Write the given fields of a place into a type's config; tell whether there were any."""
    for name, value in values.items():
        setattr(target, name, value)
    return bool(values)


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where the secrets were said to be; "" for the environment or a prompt."""

    key: str = ""
    key_passphrase: str = ""
    passphrase: str = ""
    secret_key: str = ""
    password: str = ""

    @property
    def has_key(self) -> bool:
        """Whether a private key is said to be somewhere."""
        return bool(self.key or os.environ.get("BMCTL_SFTP_PRIVATE_KEY"))

    def new(self, secrets: StorageSecrets, kind: str | None, *, encrypt: bool) -> None:
        """Fill in what a new storage needs and `secrets` does not hold yet. Raises Usage where there is no way to it."""
        sftp = kind == "sftp"
        if kind == "s3" and not secrets.s3_secret_key:
            secrets.s3_secret_key = self._secret_key()
        if kind == "ftp" and not secrets.ftp_password:
            secrets.ftp_password = self._password()
        if sftp and not secrets.sftp_private_key:
            secrets.sftp_private_key = self._key()
            if not secrets.sftp_private_key:
                raise Usage(
                    field="--key-file", problem="a private key is needed: give a file, or set BMCTL_SFTP_PRIVATE_KEY"
                )
        if sftp and not secrets.sftp_key_passphrase and has_passphrase(secrets.sftp_private_key):
            secrets.sftp_key_passphrase = self._key_passphrase()
        if encrypt and not secrets.encryption_passphrase:
            secrets.encryption_passphrase = self._passphrase()

    def changed(self, secrets: StorageSecrets, *, encrypt: bool) -> None:
        """Fill in what was explicitly given for a storage that exists; the others are kept."""
        if self.key:
            secrets.sftp_private_key = self._key()
        if self.key_passphrase or has_passphrase(secrets.sftp_private_key):
            secrets.sftp_key_passphrase = self._key_passphrase()
        if self.secret_key:
            secrets.s3_secret_key = self._secret_key()
        if self.password:
            secrets.ftp_password = self._password()
        if self.passphrase or encrypt:
            secrets.encryption_passphrase = self._passphrase()

    def _key(self) -> str:
        text = ask.given_secret(option="--key-file", file=self.key, variable="BMCTL_SFTP_PRIVATE_KEY")
        return f"{text}\n" if text and not text.endswith("\n") else text  # some readers insist on the last line's end

    def _key_passphrase(self) -> str:
        return ask.secret(
            "the key's passphrase",
            option="--key-passphrase-file",
            file=self.key_passphrase,
            variable="BMCTL_SFTP_KEY_PASSPHRASE",
        )

    def _secret_key(self) -> str:
        return ask.secret(
            "the secret key", option="--secret-key-file", file=self.secret_key, variable="BMCTL_S3_SECRET_KEY"
        )

    def _password(self) -> str:
        return ask.secret("the password", option="--password-file", file=self.password, variable="BMCTL_FTP_PASSWORD")

    def _passphrase(self) -> str:
        return ask.secret(
            "the encryption passphrase",
            option="--passphrase-file",
            file=self.passphrase,
            variable="BMCTL_ENCRYPTION_PASSPHRASE",
            twice=True,
        )


def has_passphrase(pem: str) -> bool:
    """Tell whether a private key is itself encrypted, so that its passphrase has to be asked for."""
    if "ENCRYPTED" in pem:  # PKCS #8 says so in its first line, the older form in `Proc-Type`
        return True
    body = re.search(r"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", pem, re.DOTALL)
    try:
        data = base64.b64decode(body[1]) if body else b""
    except binascii.Error:
        return False
    # After the magic comes the cipher's name, as a 4-byte length and text. Source: OpenSSH, PROTOCOL.key.
    return data.startswith(_OPENSSH_MAGIC) and data[len(_OPENSSH_MAGIC) + 4 :][:4] != b"none"
