"""What is to be known of each type of storage beside what it can do (capabilities.py): its place and its secrets. Pure data.

A type is one row here, one row in capabilities.py, one file below services/storage_checks/ and one backend of the engine.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StorageType:
    """`place` are the fields of its config that say where backups lie (S0); `secrets` are names of StorageSecrets.

    `per_hypervisor`: each hypervisor sees a place of its own.
    """

    place: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    per_hypervisor: bool = False


BY_TYPE: dict[str, StorageType] = {
    "local": StorageType(place=("path",), per_hypervisor=True),
    "sftp": StorageType(
        place=("host", "port", "path"),
        secrets=("sftp_private_key", "sftp_key_passphrase"),
    ),
    "s3": StorageType(place=("endpoint", "bucket", "prefix"), secrets=("s3_secret_key",)),
    # A server may show each user a tree of its own, so the user is part of the place.
    "ftp": StorageType(place=("host", "port", "username", "path"), secrets=("ftp_password",)),
    "rclone": StorageType(place=("remote", "path")),
}
