"""From a storage's settings to an open storage. A backend's library is only loaded when a storage of its type is opened."""

from engine.errors import InvalidSpec
from engine.spec import FtpConfig, LocalConfig, RcloneConfig, S3Config, SftpConfig, StorageSpec
from engine.storage.base import Storage


def open_storage(spec: StorageSpec, *, brief: bool = False, make: bool = True) -> Storage:
    """Return the storage that `spec` describes, connected; the caller closes it. `brief`: try for seconds only.

    Without `make` a folder that is not there is not made, and raises ObjectNotFound. Raises StorageUnreachable, StorageLoginFailed or StorageHostKeyChanged if there is no way in, StorageError or
    StorageDenied if the folder is neither there nor can be made, InvalidSpec if not exactly one backend is set.
    """
    match [one for one in (spec.local, spec.sftp, spec.s3, spec.ftp, spec.rclone) if one is not None]:
        case [LocalConfig() as config]:
            from engine.storage import deadlines
            from engine.storage.local import LocalStorage

            path = config.path
            return deadlines.DeadlineStorage(
                f"local:{path}",
                lambda: LocalStorage(path, make=make),
                deadlines.BRIEF if brief else None,
            )
        case [SftpConfig() as config]:
            from engine.storage.sftp import SftpStorage
            from engine.storage.sftp_connect import BRIEF

            return SftpStorage(config, BRIEF if brief else None, make=make)
        case [S3Config() as config]:
            from engine.storage.s3 import S3Storage

            return S3Storage(config, brief=brief, make=make)
        case [FtpConfig() as config]:
            from engine.storage.ftp import FtpStorage

            return FtpStorage(config, brief=brief, make=make)
        case [RcloneConfig() as config]:
            from engine.storage.rclone import RcloneStorage

            return RcloneStorage(config, brief=brief, make=make)
        case _:
            raise InvalidSpec(field="StorageSpec", problem="exactly one of local, sftp, s3, ftp and rclone must be set")
