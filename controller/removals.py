"""Who deletes: the hypervisor that a deletion, a prune or a purge is sent to.

    storage bound to one (N16) ─► that one, or nobody
    a local folder ─────────────► where the backups were made
    else ───────────────────────► the server's own, if it is online and idle ─► another that has the storage, idle ones first
                                  ─► (only what a person asked for) any that is online

"Has the storage": its schedule uses it, or a backup there was made by it. Such a host has the credentials already; work that
nobody asked for is no reason to hand them to another one. Idle: nothing is backed up or removed there. Removals of a
hypervisor come one after the other, and wait for its batch; they may as well go where there is neither.
"""

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

from controller import hypervisors, jobs, schedules, servers, storages
from controller.db import models
from controller.errors import DeleteBound, HypervisorNotFound, HypervisorUnreachable, ServerNotFound
from controller.hypervisors import Hypervisor
from controller.limits import CLOCK_OFFSET_MAX, Limits
from controller.rules.exclusion import GROUPS, Group
from controller.storages import Storage

if TYPE_CHECKING:
    from collections.abc import Callable

REMOVALS = frozenset(verb for verb, group in GROUPS.items() if group is Group.REMOVAL)


def choose(
    storage: Storage,
    server_id: str,
    maker_id: str,
    limits: Limits,
    now: datetime,
    *,
    asked: str = "",
    by_hand: bool = False,
) -> Hypervisor:
    """Return the hypervisor for a removal of a server's backups that `maker_id` made; `asked` (id or name) was demanded.

    One that is not online is returned only where no other will do, and says itself why it cannot. Raises
    HypervisorNotFound, HypervisorUnreachable.
    """
    if asked:
        return hypervisors.find(asked, limits, now)
    if storage.delete_hypervisor_id:
        return hypervisors.find(storage.delete_hypervisor_id, limits, now)
    if storage.per_hypervisor:
        return hypervisors.find(maker_id, limits, now)
    return _among_many(storage, server_id, limits, now, by_hand=by_hand)


def check_binding(verb: str, storage: Storage, hypervisor_id: str) -> None:
    """Raise DeleteBound for a removal when only another hypervisor than this one may delete on the storage (N16)."""
    if verb in REMOVALS and storage.delete_hypervisor_id not in {"", hypervisor_id}:
        raise DeleteBound(storage_id=storage.storage_id, hypervisor_id=storage.delete_hypervisor_id)


def _among_many(storage: Storage, server_id: str, limits: Limits, now: datetime, *, by_hand: bool) -> Hypervisor:
    home_id = _home(server_id)
    home = _find(home_id, limits, now)
    busy = _busy()
    if home is not None and _is_able(home) and home_id not in busy:
        return home
    fallback: list[Callable[[], set[str]]] = [
        lambda: _scheduled(storage) | {home_id},
        lambda: storages.makers(storage.storage_id),
    ]
    if by_hand:
        fallback.append(_all)
    for candidates in fallback:
        able = [one for one in (_find(each, limits, now) for each in sorted(candidates())) if one and _is_able(one)]
        if able:
            return min(able, key=lambda one: (busy.get(one.hypervisor_id, 0), one.hypervisor_id != home_id, one.name))
    if home is not None:
        return home  # whose state says why it cannot be
    raise HypervisorUnreachable(hypervisor_id=home_id, last_contact_time="never")


def _is_able(hypervisor: Hypervisor) -> bool:
    offset = hypervisor.clock_offset
    return hypervisor.state == "online" and (offset is None or abs(offset) <= CLOCK_OFFSET_MAX)


def _busy() -> dict[str, int]:
    """Return how much stands in a removal's way on each hypervisor that is not idle: backups there, and removals."""
    row = models.Job
    rows = row.select(row.hypervisor_id).where(row.state.in_(jobs.LIVE) & row.type.in_(("backup", *sorted(REMOVALS))))
    return Counter(one.hypervisor_id for one in rows)


def _scheduled(storage: Storage) -> set[str]:
    return {one.hypervisor_id for one in schedules.list_schedules(storage_id=storage.storage_id, limit=None)}


def _all() -> set[str]:
    return {one.hypervisor_id for one in models.Hypervisor.select(models.Hypervisor.hypervisor_id)}


def _find(hypervisor_id: str, limits: Limits, now: datetime) -> Hypervisor | None:
    try:
        return hypervisors.find(hypervisor_id, limits, now)
    except HypervisorNotFound:
        return None


def _home(server_id: str) -> str:
    try:
        return servers.find(server_id).hypervisor_id
    except ServerNotFound:
        return ""
