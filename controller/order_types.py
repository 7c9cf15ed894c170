"""What can be asked for: one class for each verb. Values, as its RPC or a rule of the controller's own states them.

All references may be ids or names; "" leaves a choice to the controller. Orders with one `request_id` are one order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from controller import previews
from controller.rules import restoring
from controller.rules.restoring import RestoreChoice


@dataclass(frozen=True, slots=True)
class BackupOrder:
    server_id: str
    storage_id: str
    type: str = ""
    consistency: str = ""
    disks: Sequence[str] = ()
    request_id: str = ""
    override_access: bool = False
    portal: bool = False  # an end user asked for it
    disk_types: Mapping[str, str] = field(default_factory=dict)  # where it is another than `type`


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    backup_id: str
    disks: Sequence[str] = ()
    target_folder: str = ""
    choice: RestoreChoice = restoring.NONE
    confirmation: str = ""
    request_id: str = ""
    override_access: bool = False
    portal: bool = False  # an end user asked for it
    during_batch: bool = False  # run between two servers of a batch at work, and not behind it (X2)


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    backup_id: str
    hypervisor_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TicketOrder:
    """`hypervisor_id` "" takes the server's own, or the one where a local folder lies."""

    backup_id: str
    hypervisor_id: str
    lifetime_seconds: int
    disks: Sequence[str] = ()
    request_id: str = ""
    override_access: bool = False


@dataclass(frozen=True, slots=True)
class DeleteOrder:
    """Backups, or all of a chain."""

    backup_ids: Sequence[str]
    confirmation: str
    hypervisor_id: str = ""
    request_id: str = ""
    chain: previews.Chain | None = None


@dataclass(frozen=True, slots=True)
class RemovalOrder:
    """What retention or a purge decided to delete: backups of one server on one storage that one hypervisor can reach."""

    type: str  # prune or purge
    server_id: str
    storage_id: str
    backup_ids: Sequence[str]
    maker_id: str
    request_id: str = ""
    purge_id: str = ""


@dataclass(frozen=True, slots=True)
class ReindexOrder:
    """`hypervisor_id` "" leaves the choice among those that use the storage."""

    storage_id: str
    hypervisor_id: str
    server_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TestOrder:
    storage_id: str
    hypervisor_id: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class HealthOrder:
    """`hypervisor_id` "" leaves the choice to whose turn it is."""

    storage_id: str
    hypervisor_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """A look at another place of a storage. Its secrets are told apart by their fingerprints, so that none is in the order."""

    storage_id: str
    hypervisor_id: str
    kind: str
    config: Mapping[str, Any]
    secret_fingerprints: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class BundleOrder:
    """A part of a recovery bundle that lies in the database; see bundles.py."""

    storage_id: str
    hypervisor_id: str
    bundle_id: str
    number: int
    count: int
    request_id: str = ""


Order: TypeAlias = (
    BackupOrder
    | RestoreOrder
    | VerifyOrder
    | TicketOrder
    | DeleteOrder
    | RemovalOrder
    | ReindexOrder
    | TestOrder
    | HealthOrder
    | ProbeOrder
    | BundleOrder
)
