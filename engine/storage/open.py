"""From a storage's settings to an open storage. A backend's library is only loaded when a storage of its type is opened."""

from engine.errors import InvalidSpec
from engine.spec import StorageSpec
from engine.storage.base import Storage


def open_storage(spec: StorageSpec, *, brief: bool = False, make: bool = True) -> Storage:
    """Return the storage that `spec` describes, connected; the caller closes it. `brief`: try for seconds only.

    Without `make` a folder that is not there is not made, and raises ObjectNotFound. Raises StorageUnreachable, StorageLoginFailed or StorageHostKeyChanged if there is no way in, StorageError or
    StorageDenied if the folder is neither there nor can be made, InvalidSpec if not exactly one backend is set.
    """
    if (spec.local is None) == (spec.sftp is None):
        raise InvalidSpec(field="StorageSpec", problem="exactly one of local and sftp must be set")
    if spec.local is not None:
        from engine.storage.local import LocalStorage

        return LocalStorage(spec.local.path, make=make)
    assert spec.sftp is not None
    from engine.storage.sftp import SftpStorage
    from engine.storage.sftp_connect import BRIEF

    return SftpStorage(spec.sftp, BRIEF if brief else None, make=make)
