"""The types of storage and their checks, as a table: what works on storages asks it, and never the name of a type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2
from controller.rules import storage_types
from controller.services.storage_checks import ftp, local, rclone, s3, settings, sftp
from controller.services.storage_checks.fields import expect

PASSPHRASES = ("encryption_passphrase", "added_passphrase")  # of storages of all types


@dataclass(frozen=True, slots=True)
class Checks:
    """`config` returns a checked config with its defaults in place; `secrets` looks at all secrets of the connection.

    Both raise InvalidField. `secrets` may take a second: never on the event loop.
    """

    message: type[Message]
    config: Callable[[Any], Message]
    secrets: Callable[[Mapping[str, str]], None] | None = None


BY_TYPE: dict[str, Checks] = {
    "local": Checks(storage_pb2.LocalConfig, local.config),
    "sftp": Checks(storage_pb2.SftpConfig, sftp.config, sftp.secrets),
    "s3": Checks(storage_pb2.S3Config, s3.config, s3.secrets),
    "ftp": Checks(storage_pb2.FtpConfig, ftp.config, ftp.secrets),
    "rclone": Checks(storage_pb2.RcloneConfig, rclone.config),
}


def config(kind: str, message: Any) -> Message:
    """Return the checked config of a type out of a request or a storage; both name it by the type."""
    return BY_TYPE[kind].config(getattr(message, kind))


def given_secrets(kind: str, given: storage_service_pb2.StorageSecrets) -> dict[str, str]:
    """Return the secrets that are given, by name; those that this type of storage has no use for are refused."""
    found = {field.name: str(value) for field, value in given.ListFields()}
    for name, value in found.items():
        fits = name in PASSPHRASES or name in storage_types.BY_TYPE[kind].secrets
        expect(fits, f"secrets.{name}", f"is not for a {kind} storage")
        if name in PASSPHRASES:
            settings.passphrase(f"secrets.{name}", value)
    return found


def check_secrets(kind: str, known: Mapping[str, str]) -> None:
    """Look at all secrets of a connection together. Takes up to a second. Raises InvalidField."""
    look = BY_TYPE[kind].secrets
    if look is not None:
        look(known)
