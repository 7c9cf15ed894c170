"""What the end of a job means for how things stand: a server fails or not, a storage is healthy or not.

Called by `jobs.end` in the transaction of the end, whatever brought it about.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from controller import failing, health, proofs
from controller.agents import outbox
from controller.db import secrets


def note(
    job: Any, state: str, failure: Mapping[str, Any] | None, result: Mapping[str, Any] | None, now: datetime
) -> None:
    """Take in how a job ended; `job` is a `jobs.Job`, `failure` and `result` are JSON forms."""
    if job.type == "backup":
        what = None if failure is None else dict(failure)
        failing.note(job.job_id, job.server_id, job.storage_id, job.hypervisor_id, state, what, now)
    elif job.type == "ticket":
        if failure is not None and job.dispatch_time is not None:
            # Its engine may have been killed with the file written.
            outbox.put(job.hypervisor_id, "revoke_ticket", job.stamp, now)
    elif proofs.PROBE in job.spec:
        secrets.remove_all(proofs.PROBE, job.job_id)
    elif job.type in health.TYPES:
        health.note(job.job_id, job.storage_id, job.hypervisor_id, state, failure, result, now)
