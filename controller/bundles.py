"""Recovery bundles on their way to a storage: when one is wanted, its parts as jobs, and how it ended (N11).

    changed? ──► sealed, cut into parts ──► a job for each, on one hypervisor ──► all written ──► written
                                               └─ one failed, or was lost ──► failed: another try an hour later, as a new bundle

Rows say all of it, so a controller that dies in the middle is followed by one that goes on. A bundle is opaque here; what is in it
is decided by rescue.py, and when to look by bundler.py. Sync functions, run by `Database.run`.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from controller import jobs, orders, proofs, reconciliation, settings, storages, system_log
from controller.context import Context
from controller.db import models
from controller.errors import HypervisorUnreachable, JobCancelled, JobNotFound
from controller.jobs import Failure
from controller.order_types import BundleOrder
from controller.rules import states
from controller.storages import Storage
from engine.ids import new_id

GOING, WRITTEN, FAILED = "going", "written", "failed"
PART_BYTES = 512 << 10  # half of what a message may have: a command says more than its part
PAUSE = timedelta(minutes=10)  # between two bundles: a panel that registers servers changes something all the time
TRY_AGAIN = timedelta(hours=1)
REFRESH = timedelta(days=7)  # also without a change, so that somebody notices a storage that lost them
ROWS_KEPT = 50
Row, _Part = models.Bundle, models.BundlePart


@dataclass(frozen=True, slots=True)
class Standing:
    """What would bring this controller back: the newest bundle that was written where the next one goes, and the last failure."""

    storage_id: str
    newest: models.Bundle | None
    writing: bool
    failure: Failure | None


def standing() -> Standing:
    """Return how bundles stand."""
    chosen = settings.get().bundle_storage_id
    last = _newest()
    failed = last is not None and last.state == FAILED and bool(chosen)
    return Standing(
        chosen,
        _newest((Row.state == WRITTEN) & (Row.storage_id == chosen)) if chosen else None,
        Row.select().where(Row.state == GOING).exists(),
        Failure(**last.failure) if failed and last is not None and last.failure else None,
    )


def wanted(now: datetime) -> bool:
    """Tell whether a look at what changed is worth it now."""
    last = _newest()
    if not settings.get().bundle_storage_id or (last is not None and last.state == GOING):
        return False
    if last is None or _was_refused(last):
        return True
    return now - last.create_time >= (TRY_AGAIN if last.state == FAILED else PAUSE)


def is_new(digest: str, now: datetime) -> bool:
    """Tell whether the storage has no bundle of this content, or none that was written lately."""
    newest = standing().newest
    return newest is None or newest.digest != digest or now - newest.create_time >= REFRESH


def note_use(now: datetime) -> None:
    """Remember that the storage is written to from now on, see proofs.py. Raises StorageNotFound."""
    proofs.note_use(storages.find(settings.get().bundle_storage_id).storage_id, "bundle", now)


def check(context: Context) -> None:
    """Raise what would keep `begin` from making a job now: nothing has to be read for a bundle that cannot go."""
    storage, hypervisor_id = _way(context)
    orders.check(BundleOrder(storage.storage_id, hypervisor_id, new_id(context.now), 1, 1), context)


def begin(sealed: bytes, digest: str, context: Context) -> str:
    """Send a bundle on its way and return its id. Raises what keeps a job from being made; nothing is left then."""
    storage, hypervisor_id = _way(context)
    bundle_id = new_id(context.now)
    parts = [sealed[start : start + PART_BYTES] for start in range(0, len(sealed), PART_BYTES)]
    with models.proxy.atomic():
        Row.insert(
            bundle_id=bundle_id,
            storage_id=storage.storage_id,
            hypervisor_id=hypervisor_id,
            digest=digest,
            state=GOING,
            create_time=context.now,
            part_count=len(parts),
            stored_bytes=len(sealed),
        ).execute()
        for number, data in enumerate(parts, 1):
            order = BundleOrder(storage.storage_id, hypervisor_id, bundle_id, number, len(parts))
            _Part.insert(bundle_id=bundle_id, number=number, data=data, job_id=orders.start(order, context)).execute()
    return bundle_id


def part(bundle_id: str, number: int) -> bytes:
    """Return a part's bytes. Raises JobNotFound when the bundle has ended."""
    row = _Part.get_or_none((_Part.bundle_id == bundle_id) & (_Part.number == number))
    if row is None:
        raise JobNotFound(job_id=bundle_id)
    return bytes(row.data)


def settle(context: Context) -> None:
    """End the bundles whose jobs have: written when all went well, else failed."""
    for row in list(Row.select().where(Row.state == GOING)):
        chosen = [one.job_id for one in _Part.select(_Part.job_id).where(_Part.bundle_id == row.bundle_id)]
        known = jobs.find_all(chosen)
        bad = [
            known.get(one)
            for one in chosen
            if one not in known or (known[one].ended and known[one].state not in states.WELL)
        ]
        if bad:
            for job in known.values():
                if not job.ended:
                    jobs.request_cancel(job, JobCancelled.reason, context.now)
            failed = next((job.failure for job in bad if job is not None and job.failure), None)
            _end(row.bundle_id, FAILED, failed or Failure("INTERNAL", "a job of it is gone"), context.now)
        elif all(job.ended for job in known.values()):
            _end(row.bundle_id, WRITTEN, None, context.now)


def refused(failure: Failure, now: datetime) -> None:
    """Remember that a bundle could not even be begun; the same again is told once."""
    last = _newest()
    if last is not None and _was_refused(last) and last.failure["reason"] == failure.reason:
        Row.update(end_time=now).where(Row.bundle_id == last.bundle_id).execute()
        return
    bundle_id = new_id(now)
    chosen = settings.get().bundle_storage_id
    Row.insert(bundle_id=bundle_id, storage_id=chosen, state=GOING, create_time=now).execute()
    _end(bundle_id, FAILED, failure, now)


def blocked() -> list[tuple[Storage, list[str]]]:
    """Return the storages that nothing is deleted on before they are reconciled; of a local folder, with the hypervisors where it is."""
    found = [(storage, reconciliation.blocked_at(storage)) for storage in storages.list_storages(limit=10_000)]
    return [(storage, [one for one in places if one]) for storage, places in found if places]


def _way(context: Context) -> tuple[Storage, str]:
    """Return where a bundle goes, and from which hypervisor. Raises StorageNotFound, HypervisorUnreachable."""
    storage = storages.find(settings.get().bundle_storage_id)
    hypervisor_id = reconciliation.reader(storage, context.limits, context.now)
    if not hypervisor_id:
        raise HypervisorUnreachable(hypervisor_id="any", last_contact_time="unknown")
    return storage, hypervisor_id


def _end(bundle_id: str, state: str, failure: Failure | None, now: datetime) -> None:
    ended = Row.update(state=state, end_time=now, failure=asdict(failure) if failure else None).where(
        (Row.bundle_id == bundle_id) & (Row.state == GOING)
    )
    if not ended.execute():
        return
    _Part.delete().where(_Part.bundle_id == bundle_id).execute()
    kept = Row.select(Row.bundle_id).order_by(Row.bundle_id.desc()).limit(ROWS_KEPT)
    Row.delete().where((Row.state != WRITTEN) & Row.bundle_id.not_in([one.bundle_id for one in kept])).execute()
    storage_id = Row.get_by_id(bundle_id).storage_id
    if failure is not None:
        message = f"The recovery bundle was not written: {failure.message}"
        system_log.write("error", "dispatcher", message, now, storage_id=storage_id)
    else:
        system_log.write("info", "dispatcher", "A recovery bundle was written", now, storage_id=storage_id)


def _was_refused(row: models.Bundle) -> bool:
    return bool(row.state == FAILED and not row.hypervisor_id)


def _newest(condition: object = None) -> models.Bundle | None:
    query = Row.select() if condition is None else Row.select().where(condition)
    row: models.Bundle | None = query.order_by(Row.bundle_id.desc()).first()
    return row
