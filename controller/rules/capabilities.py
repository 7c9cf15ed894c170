"""What each type of storage can do, as data (S2); clients are told the same by the API. Pure.

What an ability of the engine's backend says is not repeated from memory: a test holds this table against each backend.
"""

from dataclasses import dataclass

from controller.errors import BindAddressUnsupported


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The fields are those of StorageCapabilities; `no_bind_address` says why a source address cannot be chosen.

    What some servers of the type can and others cannot is False here, and named in `depends_on_server`.
    """

    atomic_rename: bool
    exclusive_create: bool
    resume: bool
    usage: bool
    range_read: bool = True
    server_side_copy: bool = False
    object_lock: bool = False
    incremental: bool = True
    encryption: bool = True
    server_side_deduplication: bool = False
    depends_on_server: tuple[str, ...] = ()
    no_bind_address: str = ""

    @property
    def bind_address(self) -> bool:
        return not self.no_bind_address


BY_TYPE: dict[str, Capabilities] = {
    "local": Capabilities(
        atomic_rename=True,
        exclusive_create=True,
        resume=False,
        usage=True,
        no_bind_address="a folder of the hypervisor itself is reached without a connection",
    ),
    "sftp": Capabilities(atomic_rename=True, exclusive_create=True, resume=True, usage=True),
    # An upload becomes an object in one step, without a rename; whether a second one is refused, the server is asked (412).
    "s3": Capabilities(
        atomic_rename=False, exclusive_create=False, resume=True, usage=False, depends_on_server=("exclusive_create",)
    ),
    # A rename overwrites, but MKD can be a lock: whether it refuses a folder that is there, the server is asked.
    "ftp": Capabilities(
        atomic_rename=True, exclusive_create=False, resume=True, usage=False, depends_on_server=("exclusive_create",)
    ),
    "rclone": Capabilities(
        atomic_rename=False,
        exclusive_create=False,
        resume=False,
        usage=False,
        depends_on_server=("atomic_rename", "usage", "server_side_copy"),
    ),
}


def check_bind_address(kind: str) -> None:
    """Raise BindAddressUnsupported where connections to this type of storage have no source address to choose (D19)."""
    problem = BY_TYPE[kind].no_bind_address
    if problem:
        raise BindAddressUnsupported(type=kind, problem=problem)
