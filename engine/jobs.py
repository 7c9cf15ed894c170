"""One job from its spec to its result: opens what it needs, calls the verb, and says what was being done when it failed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.errors import BackupManagerError, Cancelled, VerifyFailed
from engine.spec import Job, Operation
from engine.step_report import StepReport
from engine.surroundings import Surroundings, keys_of
from engine.work import Work

if TYPE_CHECKING:
    from engine.inventory import Change


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `state` is completed, completed_with_warnings, failed or cancelled; see spec.py for the rest."""

    state: str
    failure: dict[str, Any] | None
    warnings: list[str]
    result: dict[str, Any] | None


def run_job(job: Job, operation: Operation, work: Work) -> Outcome:
    """Do the job and return how it ended. Raises only what is a fault of our own."""
    report = StepReport(work.report)
    work.report = report
    report.info(f"{_verb(job).__name__.strip('_').replace('_', ' ')} begins on {operation.host}")
    outcome = _run(job, operation, work, report)
    report.conclude(outcome.state)
    return outcome


def _run(job: Job, operation: Operation, work: Work, report: StepReport) -> Outcome:
    try:
        work.stop.check()
        result = _verb(job)(Surroundings(job, operation, work))
    except Cancelled:
        return Outcome("cancelled", None, report.warnings, None)
    except BackupManagerError as error:
        return Outcome("failed", failure_of(error, report.step), report.warnings, error.result)
    state = "completed_with_warnings" if report.warnings else "completed"
    return Outcome(state, None, report.warnings, result)


def failure_of(error: BackupManagerError, step: str) -> dict[str, Any]:
    """Return an error as it travels: reason, message with remedy, facts, and what was being done."""
    return {"reason": error.reason, "message": error.message, "facts": error.facts, "step": step}


def _verb(job: Job) -> Callable[[Surroundings], dict[str, Any]]:
    if job.backup is not None:
        return _back_up
    if job.restore is not None:
        return _restore
    if job.verify is not None:
        return _verify
    if job.reindex is not None:
        return _reindex
    if job.delete is not None:
        return _delete
    if job.health is not None:
        return _health
    if job.ticket is not None:
        return _ticket
    if job.bundle is not None:
        return _bundle
    return _test


def _back_up(around: Surroundings) -> dict[str, Any]:
    from engine.backup import back_up
    from engine.inventory import with_backup
    from engine.results import BackupRecord

    spec = around.job.backup
    assert spec is not None
    with _catalog(around, spec.server_id) as note:
        result = back_up(around)
        manifests_say = replace(result, quiesce_seconds=0.0)  # what a reindex would find
        note(with_backup(BackupRecord(spec.server_id, around.job.job_id, manifests_say)))
    return asdict(result)


def _restore(around: Surroundings) -> dict[str, Any]:
    from engine.restore import restore

    return asdict(restore(around))


def _verify(around: Surroundings) -> dict[str, Any]:
    from engine.verify import Finder, verify

    spec = around.job.verify
    assert spec is not None
    with around.repository() as storage:
        finder = Finder(around.job.job_id, around.operation.host, around.now()) if spec.note_damage else None
        found = verify(storage, spec.server_id, spec.backup_id, keys_of(spec.server_keys), around.work, finder)
    if found.damaged_count:
        raise VerifyFailed(asdict(found), backup_id=spec.backup_id or "any", damaged=found.damaged_count)
    return asdict(found)


def _reindex(around: Surroundings) -> dict[str, Any]:
    from engine.inventory import rebuilder
    from engine.reindex import reindex

    spec = around.job.reindex
    assert spec is not None
    keep = rebuilder(around.catalog(), around.work.report.warn) if around.operation.catalog_folder else _keep_nothing
    with around.repository() as storage:
        return asdict(reindex(storage, spec.server_id, {}, around.work, keep))


def _keep_nothing(_server_id: str, _records: list[dict[str, Any]]) -> None:
    """Stand in where the host keeps no catalog."""


@contextmanager
def _catalog(around: Surroundings, server_id: str) -> "Iterator[Callable[[Change], None]]":
    """Let the block note what it changes in this host's own catalog (C9). That file can be rebuilt: no failure of it is the job's."""
    catalog, changes = around.catalog(), list["Change"]()
    with ExitStack() as stack:
        if around.operation.catalog_folder:
            with _warned(around):
                stack.enter_context(catalog.changing(server_id, around.job.job_id))
        yield changes.append
        if around.operation.catalog_folder:
            for change in changes:
                with _warned(around):
                    catalog.update(server_id, change)


@contextmanager
def _warned(around: Surroundings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        around.work.report.info(f"this host's own catalog could not be kept: {error}")


def _delete(around: Surroundings) -> dict[str, Any]:
    from engine.delete import delete_backups
    from engine.inventory import without

    spec, work = around.job.delete, around.work
    assert spec is not None
    host, job_id = around.operation.host, around.job.job_id
    with _catalog(around, spec.server_id) as note, around.repository() as storage:
        result = delete_backups(
            storage, spec.server_id, spec.backup_ids, job_id, host, around.now(), around.lock_folder, work
        )
        note(without(result.backup_ids))
    if spec.domain_uuid:
        _drop_checkpoints(around, spec.domain_uuid, set(result.backup_ids))
    return asdict(result)


def _drop_checkpoints(around: Surroundings, domain_uuid: str, backup_ids: set[str]) -> None:
    """Remove the checkpoints that deleted backups left on this host's domain; what cannot be reached is only warned of."""
    from engine.hypervisor.checkpoints import checkpoint_name, delete_checkpoint
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.lock import DomainLock

    repository_id = around.operation.storage.repository_id
    try:
        with (
            DomainLock(around.lock_folder, domain_uuid, around.job.job_id),
            open_connection(around.operation.libvirt_uri) as connection,
        ):
            domain = connection.domain(domain_uuid)
            for backup_id in backup_ids:
                delete_checkpoint(domain, checkpoint_name(repository_id, backup_id))
    except BackupManagerError as error:
        around.work.report.warn(f"the checkpoints of the deleted backups could not be removed: {error}")


def _test(around: Surroundings) -> dict[str, Any]:
    """Try the storage step by step, each a stage of the job, and make its repository if there is none."""
    from engine.trial import try_storage

    work = around.work
    return asdict(try_storage(around.operation.storage, work.stop, work.report.stage, around.now()))


def _health(around: Surroundings) -> dict[str, Any]:
    from engine.health import look

    return asdict(look(around.operation.storage, around.work.stop))


def _ticket(around: Surroundings) -> dict[str, Any]:
    from engine.ticket_issue import leave_ticket

    return asdict(leave_ticket(around))


def _bundle(around: Surroundings) -> dict[str, Any]:
    from engine.bundles import write

    spec = around.job.bundle
    assert spec is not None
    around.work.report.stage("write")
    with around.repository() as storage:
        return asdict(write(storage, spec))
