"""What each type of storage can do, as data (S2); clients are told the same by the API. Pure."""

from dataclasses import dataclass

from controller.errors import BindAddressUnsupported


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The fields are those of StorageCapabilities; `no_bind_address` says why a source address cannot be chosen."""

    incremental: bool = True
    encryption: bool = True
    usage: bool = True
    no_bind_address: str = ""

    @property
    def bind_address(self) -> bool:
        return not self.no_bind_address


BY_TYPE: dict[str, Capabilities] = {
    "local": Capabilities(no_bind_address="a folder of the hypervisor itself is reached without a connection"),
    "sftp": Capabilities(),
}


def check_bind_address(kind: str) -> None:
    """Raise BindAddressUnsupported where connections to this type of storage have no source address to choose (D19)."""
    problem = BY_TYPE[kind].no_bind_address
    if problem:
        raise BindAddressUnsupported(type=kind, problem=problem)
