"""What is to be known of each type of storage beside what it can do (capabilities.py): its place and its secrets. Pure data.

A type is one row here, one row in capabilities.py, one file below services/storage_checks/ and one backend of the engine.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StorageType:
    """`place` are the fields of its config that say where backups lie (S0); `secrets` are names of StorageSecrets.

    `login` are the further fields that say who we are there.

    `per_hypervisor`: each hypervisor sees a place of its own.
    """

    place: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    login: tuple[str, ...] = ()
    per_hypervisor: bool = False


BY_TYPE: dict[str, StorageType] = {
    "local": StorageType(place=("path",), per_hypervisor=True),
    "sftp": StorageType(
        place=("host", "port", "path"),
        secrets=("sftp_private_key", "sftp_key_passphrase"),
        login=("username",),
    ),
    "s3": StorageType(place=("endpoint", "bucket", "prefix"), secrets=("s3_secret_key",), login=("access_key",)),
    # A server may show each user a tree of its own, so the user is part of the place.
    "ftp": StorageType(place=("host", "port", "username", "path"), secrets=("ftp_password",)),
    "rclone": StorageType(place=("remote", "path")),
}


def is_another_way_in(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any] | None, new_secrets: Collection[str]
) -> bool:
    """Tell whether a change of a storage makes of no use, or is to, what somebody holds to get into it as it was.

    `after` is the new config, None for the old one; `new_secrets` are names of the secrets that are new.
    """
    one = BY_TYPE[kind]
    moved = after is not None and any(before.get(name) != after.get(name) for name in (*one.place, *one.login))
    return moved or not set(one.secrets).isdisjoint(new_secrets)
