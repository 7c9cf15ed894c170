"""The jobs that delete what nothing keeps (R11, R19).

    candidate ──► decided anew, in the transaction that makes the job ──► prune job, with the ids of what goes

What goes is decided here, again when the job leaves the queue (retention.check_going), and the engine has the last word: it
reads every manifest of the server and refuses to delete what is needed. A chain in use is passed over, with all that its
backups need. Sync functions, run by `Database.run`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller import backups, jobs, leases, orders, previews, prune_queue, retention, storages
from controller.context import Context as OrderContext
from controller.db import models
from controller.db.secrets import Vault
from controller.limits import Limits
from controller.order_types import RemovalOrder
from controller.prune_queue import Candidate
from controller.retention import History
from controller.storages import Storage
from engine.errors import BackupManagerError

REQUESTER = "retention"


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of a candidate: the jobs that it led to, and why some or all of it was left alone, "" if none was."""

    job_ids: tuple[str, ...]
    skipped: str = ""


def prune(candidate: Candidate, limits: Limits, vault: Vault, now: datetime) -> Pruned:
    """Decide anew about a candidate, order the deletion of what nothing keeps, and settle the candidate."""
    done = _prune(candidate, limits, vault, now)
    if done.skipped:
        prune_queue.postpone(candidate, now)
    else:
        prune_queue.drop([candidate], now)
    return done


def _prune(candidate: Candidate, limits: Limits, vault: Vault, now: datetime) -> Pruned:
    storage = storages.find(candidate.storage_id)
    if not storage.enabled or storage.read_only:
        return Pruned((), "the storage is disabled or read-only")  # no failure (S22)
    found = retention.histories(candidate.storage_id, [candidate.server_id])
    if not found:
        return Pruned(())
    history = found[0]
    going = retention.going(history, retention.basis(storage).applied(history.hypervisor_id), now)
    if not going:
        return Pruned(())
    if any(job.type == "backup" for job in jobs.live(server_id=candidate.server_id)):
        return Pruned((), "a backup of the server is being made")
    free = not_in_use(history, going)
    skipped = "" if len(free) == len(going) else "a chain is in use"
    started = []
    for maker_id, doomed in by_maker(storage, free).items():
        order = RemovalOrder(
            "prune", candidate.server_id, storage.storage_id, doomed[: previews.DELETE_BACKUPS_MAX], maker_id
        )
        try:
            with models.proxy.atomic():
                started.append(orders.start(order, OrderContext(limits, vault, REQUESTER, now)))
        except BackupManagerError as error:
            skipped = error.message
        if len(doomed) > previews.DELETE_BACKUPS_MAX:
            skipped = skipped or "there is more than one job deletes"
    return Pruned(tuple(started), skipped)


def not_in_use(history: History, going: Sequence[str]) -> list[str]:
    """Return those of `going` (newest first) that lie in no chain in use, and that nothing needs which does (R19)."""
    in_use = leases.chains_in_use(history.server_id)
    by_id = {one.backup_id: one for one in history.backups}
    staying: set[str] = set()
    for backup_id in going:
        backup = by_id[backup_id]
        chains = {f"{history.server_id}/{point.chain_id}" for point in backup.disks}
        if chains & in_use or backup_id in staying:
            staying |= {backup_id, *(need for point in backup.disks for need in point.needs)}
    return [one for one in going if one not in staying]


def by_maker(storage: Storage, backup_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the backups by the hypervisor that made them where that matters, in a local folder; else all under ""."""
    if not storage.per_hypervisor:
        return {"": list(backup_ids)} if backup_ids else {}
    makers = backups.makers(backup_ids)
    found: dict[str, list[str]] = defaultdict(list)
    for backup_id in backup_ids:
        found[makers[backup_id]].append(backup_id)
    return dict(found)
