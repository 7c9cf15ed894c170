"""The states of jobs and of batches, and how a batch ends by its jobs. Pure.

job     pending ─► dispatched ─► running ─► completed | completed_with_warnings | failed | cancelled | skipped
queued ──┘                            pending and skipped are of batches, queued of singles
batch   deferred ─► dispatched ─► running ─► completed | completed_with_warnings | partial | failed | cancelled
"""

from collections.abc import Collection

QUEUED, PENDING, DISPATCHED, RUNNING = "queued", "pending", "dispatched", "running"
COMPLETED, COMPLETED_WITH_WARNINGS, FAILED, CANCELLED = "completed", "completed_with_warnings", "failed", "cancelled"
SKIPPED, DEFERRED, PARTIAL = "skipped", "deferred", "partial"
LIVE = (QUEUED, PENDING, DISPATCHED, RUNNING)
SENT = (DISPATCHED, RUNNING)
WELL = frozenset({COMPLETED, COMPLETED_WITH_WARNINGS})
BATCH_AT_WORK = (DISPATCHED, RUNNING)
BATCH_LIVE = (DEFERRED, *BATCH_AT_WORK)


def outcome(ends: Collection[str], *, cancelled: bool) -> str:
    """Return the end of a batch whose jobs ended so. `cancelled`: a person asked for its end.

    A skipped server is no failure (S21), and one that a person cancelled by itself is none either; but where nothing at
    all was backed up because of it, the batch says so.
    """
    kinds = set(ends)
    if cancelled:
        return CANCELLED
    if FAILED in kinds:
        return PARTIAL if kinds & WELL else FAILED
    if CANCELLED in kinds and not kinds & WELL:
        return CANCELLED
    return COMPLETED_WITH_WARNINGS if kinds - {COMPLETED} else COMPLETED
