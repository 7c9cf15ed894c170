"""The tick's pruning: storages whose round is due are evaluated, and what was found leads to jobs (G4, G5).

    at most Max Prune Storages Per Tick: servers, SERVERS_MAX at a time ──► what goes? ──► candidates
    candidates, longest waiting first ──► does something go? ──► at most Max Prune Dispatches Per Tick: jobs

The database's thread reads and writes for a few milliseconds at a time; the deciding itself is done beside it. Whatever is cut
off goes on at the next tick: a round keeps its place, and a candidate stays until it is settled.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from controller import prune_queue, pruning, reconciliation, retention, settings, storages, system_log
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.limits import Limits
from controller.prune_queue import Candidate
from controller.retention import Basis, History
from controller.storages import Storage
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)

CANDIDATES_MAX = 1000  # of one tick: a night's batches bring some dozens a minute


async def step(around: "Round") -> None:
    """Do a tick's share of pruning."""
    await run(around.database, around.limits, around.vault, around.now)


async def run(database: Database, limits: Limits, vault: Vault, now: datetime) -> None:
    """Evaluate the storages that are due, and make jobs of what was found; nothing on an epoch's first day."""
    if await database.run(reconciliation.retention_resume_time, now):
        return
    chosen = await database.run(settings.get)
    interval = timedelta(hours=chosen.prune_interval_hours)
    for storage in await database.run(prune_queue.due_storages, interval, chosen.max_prune_storages_per_tick, now):
        await _evaluate(database, storage, now)
    await _order(database, limits, vault, chosen.max_prune_dispatches_per_tick, now)


async def _evaluate(database: Database, storage: Storage, now: datetime) -> None:
    """Look at all servers of a storage, from where the round has come to."""
    bases = await database.run(retention.basis, storage)
    if retention.prunes(bases):
        reached = await database.run(prune_queue.cursor, storage.storage_id)
        while part := await database.run(_part, storage.storage_id, reached):
            going = await asyncio.to_thread(_going, bases, part, now)
            reached = part[-1].server_id
            await database.run(prune_queue.advance, storage.storage_id, reached, going, now)
    await database.run(prune_queue.finish, storage.storage_id, now)


def _part(storage_id: str, after: str) -> list[History]:
    return retention.histories(storage_id, retention.servers_on(storage_id, after=after))


def _going(bases: Basis, histories: Sequence[History], now: datetime) -> list[str]:
    """Return the servers of which something goes. One that we stumble over costs only itself."""
    found = []
    for history in histories:
        try:
            if retention.going(history, bases.applied(history.hypervisor_id), now):
                found.append(history.server_id)
        except Exception:
            log.exception(
                "retention cannot be decided storage_id=%s server_id=%s", bases.storage.storage_id, history.server_id
            )
    return found


async def _order(database: Database, limits: Limits, vault: Vault, most: int, now: datetime) -> None:
    """Make jobs of candidates, at most so many; those of which nothing goes are dropped many at a time."""
    ordered = 0
    for candidate in await _promising(database, now):
        if ordered >= most:
            return
        ordered += await _order_one(database, candidate, limits, vault, now)


async def _promising(database: Database, now: datetime) -> list[Candidate]:
    """Return the candidates of which something goes, and drop the others."""
    waiting = await database.run(prune_queue.candidates, CANDIDATES_MAX, now)
    by_storage: dict[str, list[Candidate]] = defaultdict(list)
    for one in waiting:
        by_storage[one.storage_id].append(one)
    promising: set[Candidate] = set()
    for storage_id, of_storage in by_storage.items():
        bases = await database.run(_basis, storage_id)
        for start in range(0, len(of_storage), retention.SERVERS_MAX):
            chunk = of_storage[start : start + retention.SERVERS_MAX]
            part = await database.run(retention.histories, storage_id, [one.server_id for one in chunk])
            going = {Candidate(storage_id, one) for one in await asyncio.to_thread(_going, bases, part, now)}
            promising |= going
            await database.run(prune_queue.drop, [one for one in chunk if one not in going], now)
    return [one for one in waiting if one in promising]


def _basis(storage_id: str) -> Basis:
    return retention.basis(storages.find(storage_id))


async def _order_one(database: Database, candidate: Candidate, limits: Limits, vault: Vault, now: datetime) -> int:
    """Return how many jobs a candidate led to. One that fails is put off, so that it stands in nobody's way."""
    try:
        done = await database.run(pruning.prune, candidate, limits, vault, now)
    except Exception as error:
        log.exception("candidate cannot be pruned server_id=%s", candidate.server_id)
        await database.run(_put_off, candidate, error, now)
        return 0
    if done.skipped:
        log.info(
            "prune left something server_id=%s storage_id=%s why=%s",
            candidate.server_id,
            candidate.storage_id,
            done.skipped,
        )
    return len(done.job_ids)


def _put_off(candidate: Candidate, error: Exception, now: datetime) -> None:
    prune_queue.postpone(candidate, now)
    what = error.message if isinstance(error, BackupManagerError) else "a fault of our own, see the controller's log"
    system_log.write(
        "error",
        "prune",
        f"What retention keeps no more could not be deleted: {what}. It is tried again in an hour.",
        now,
        storage_id=candidate.storage_id,
        server_id=candidate.server_id,
    )
