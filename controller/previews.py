"""What a restore or a deletion would do, shown before it is done, and signed: an order has to carry what was shown.

    preview ──► facts ──► signature ··· a person decides ··· order ──► the same facts? ──► job

Facts that changed in between make another signature, and the order is refused (CONFIRMATION_STALE). Sync functions, run by
`Database.run`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from controller import backups, confirmations, servers, storages
from controller.backups import Backup
from controller.context import Context
from controller.errors import BackupNotFound, DiskNotFound, InvalidField, ServerNotFound
from controller.rules import admission, restoring
from controller.rules.restoring import RestoreChoice
from controller.servers import Server

DELETE_BACKUPS_MAX = 1000  # of one job; their records and the command fit in a message (N9)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, on all disks or on one, as a person names it."""

    server_id: str
    storage_id: str
    chain_id: str
    disk: str = ""


@dataclass(frozen=True, slots=True)
class RestorePreview:
    """What a restore would do. `chain_backup_ids` are read, oldest first, the backup itself last."""

    backup: Backup
    disks: tuple[str, ...]
    stops_server: bool
    chain_backup_ids: tuple[str, ...]
    confirmation: str


@dataclass(frozen=True, slots=True)
class DeletePreview:
    """What a deletion would remove: what was asked for, and what cannot live without it.

    `record_count` counts the disks of all these; `active`: the next backup would have gone on with one of their chains.
    """

    backups: tuple[Backup, ...]
    stored_bytes: int
    record_count: int
    active: bool
    confirmation: str


def preview_restore(
    backup_id: str,
    server_id: str,
    disks: Sequence[str],
    target_folder: str,
    context: Context,
    choice: RestoreChoice = restoring.NONE,
) -> RestorePreview:
    """Show what a restore would overwrite; an empty `backup_id` takes the server's latest.

    Raises BackupNotFound, ServerNotFound, ServerDeleted, DiskNotFound, InvalidField.
    """
    preview, facts = restore_facts(backup_id, server_id, disks, target_folder, context.now, choice)
    return RestorePreview(*preview, confirmations.sign(context.vault, "restore", facts))


def preview_delete(backup_ids: Sequence[str], context: Context, chain: Chain | None = None) -> DeletePreview:
    """Show what deleting backups, or a chain, would remove. Raises BackupNotFound, ServerNotFound, StorageNotFound, InvalidField."""
    doomed, facts = delete_facts(backup_ids, chain)
    first = doomed[0]
    return DeletePreview(
        backups=tuple(doomed),
        stored_bytes=sum(one.stored_bytes for one in doomed),
        record_count=sum(len(one.disks) for one in doomed),
        active=bool(
            backups.active_chains(first.server_id, first.storage_id)
            & backups.chains_of([one.backup_id for one in doomed])
        ),
        confirmation=confirmations.sign(context.vault, "delete", facts),
    )


_RestoreShown: TypeAlias = tuple[Backup, tuple[str, ...], bool, tuple[str, ...]]


def restore_facts(
    backup_id: str, server_id: str, disks: Sequence[str], target_folder: str, now: datetime, choice: RestoreChoice
) -> tuple[_RestoreShown, dict[str, Any]]:
    """Return what a restore would do, and the same as facts to sign."""
    backup = backups.get(backup_id) if backup_id else backups.latest(servers.find(server_id).server_id)
    server = servers.find(backup.server_id)
    to_files = bool(target_folder or choice.targets)
    admission.check_server("restore", server, now, to_files=to_files)
    points = _points(backup, choice)
    chosen = _chosen_disks(backup, server, disks, choice, to_files=to_files)
    restoring.check(choice, chosen, target_folder)
    stops = not to_files and server.domain_state in {"running", "paused"}
    needed = (one for point in (*points, backup) for one in backups.needs(point.backup_id))
    chain = tuple(dict.fromkeys(needed)) if points else tuple(backups.needs(backup.backup_id))
    facts = {
        "backup_id": backup.backup_id,
        "manifest_digest": backup.manifest_digest,
        "state": backup.state,
        "disks": list(chosen),
        "target_folder": target_folder,
        **choice.json(),
        "points_known": [[one.backup_id, one.manifest_digest, one.state] for one in points],
        "server_id": server.server_id,
        "hypervisor_id": server.hypervisor_id,
        "domain_uuid": server.domain_uuid,
        "stops_server": stops,
        "chain": list(chain),
    }
    return (backup, chosen, stops, chain), facts


def _points(backup: Backup, choice: RestoreChoice) -> list[Backup]:
    """Return the other backups that disks come from, oldest first, each once; they are of one server and one storage."""
    points = {}
    for disk, backup_id in choice.points.items():
        point = points[backup_id] = backups.get(backup_id)
        if (point.server_id, point.storage_id) != (backup.server_id, backup.storage_id):
            raise InvalidField(
                field="points", problem=f"for {disk} is a backup of another server or on another storage"
            )
        if disk not in {one.disk for one in point.disks}:
            raise DiskNotFound(domain=f"backup {backup_id}", disk=disk)
    points.pop(backup.backup_id, None)
    return [points[one] for one in sorted(points)]


def _chosen_disks(
    backup: Backup, server: Server, wanted: Sequence[str], choice: RestoreChoice, *, to_files: bool
) -> tuple[str, ...]:
    """Return the disks to restore, never none. A disk that the server no longer has is left out (M17), and refused if asked for."""
    held = list(dict.fromkeys([*(disk.disk for disk in backup.disks), *choice.points]))
    present = {str(disk.get("disk", "")) for disk in server.disks}
    for disk in wanted or choice.points:
        if disk not in held:
            raise DiskNotFound(domain=f"backup {backup.backup_id}", disk=disk)
        if not to_files and present and disk not in present:
            raise DiskNotFound(domain=f"server {server.server_id}", disk=disk)
    if wanted:
        return tuple(disk for disk in held if disk in set(wanted))
    chosen = tuple(disk for disk in held if to_files or not present or disk in present)
    if not chosen:  # an empty list means all of them to an agent
        raise DiskNotFound(domain=f"server {server.server_id}", disk=", ".join(held))
    return chosen


def delete_facts(backup_ids: Sequence[str], chain: Chain | None) -> tuple[list[Backup], dict[str, Any]]:
    """Return the backups that would go, newest first, and the same as facts to sign."""
    if chain is not None:
        backup_ids = _members(chain)
    if not backup_ids:
        raise InvalidField(field="backup_ids", problem="is empty")
    asked = [backups.get(one) for one in dict.fromkeys(backup_ids)]
    if len({(one.server_id, one.storage_id) for one in asked}) > 1:
        raise InvalidField(field="backup_ids", problem="must be of one server on one storage")
    doomed = [backups.get(one) for one in backups.dependents([one.backup_id for one in asked])]
    if len(doomed) > DELETE_BACKUPS_MAX:
        raise InvalidField(field="backup_ids", problem=f"would remove more than {DELETE_BACKUPS_MAX} backups at once")
    facts = {"backups": [[one.backup_id, one.state, one.stored_bytes, one.manifest_digest] for one in doomed]}
    return doomed, facts


def _members(chain: Chain) -> list[str]:
    """Return the backups that lie in a chain. Raises BackupNotFound."""
    server_id = _server_id(chain.server_id)
    members = backups.of_chain(server_id, storages.find(chain.storage_id).storage_id, chain.chain_id, chain.disk)
    if not members:
        raise BackupNotFound(backup_id=f"in chain {chain.chain_id}", server_id=server_id)
    return members


def _server_id(reference: str) -> str:
    """Return a server's id; one that only the catalog knows is its own reference."""
    server = server_or_none(reference)
    return reference if server is None else server.server_id


def server_or_none(server_id: str) -> Server | None:
    """Return a server, None for one that only the catalog knows."""
    try:
        return servers.find(server_id)
    except ServerNotFound:
        return None
