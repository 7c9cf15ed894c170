"""Probes: does another place carry a storage's repository? A look like those of health, at the place that is asked about (S0).

The secrets that come with the question lie sealed under the job's id until the job has ended, whatever became of it; its health
says nothing of the storage. `proofs.py` asks what probes found. Sync functions, inside `Database.run`.
"""

from collections.abc import Mapping
from typing import Any

from controller import orders, storages
from controller.context import Context
from controller.db import secrets
from controller.db.secrets import Vault
from controller.jobs import Job, get
from controller.order_types import ProbeOrder
from controller.proofs import PROBE

TABLE = PROBE  # its secrets' table name; `outcomes.py` empties it


def start(order: ProbeOrder, given: Mapping[str, str], vault: Vault, context: Context) -> str:
    """Make the job and return its id. Raises what `orders.start` does."""
    job_id = orders.start(order, context)
    if not get(job_id).ended:
        for name, value in given.items():
            secrets.put(vault, TABLE, job_id, name, value, context.now)
    return job_id


def place_of(job: Job) -> dict[str, Any] | None:
    """Return the config that a job looks at, None for work on the storage's own place."""
    found: dict[str, Any] | None = job.spec.get(PROBE)
    return found


def secrets_for(job: Job, vault: Vault) -> dict[str, str]:
    """Return the secrets that a probe goes by: the storage's own, and those that came with the question over them."""
    own = secrets.open_all(vault, storages.TABLE, job.storage_id)
    return {**own, **secrets.open_all(vault, TABLE, job.job_id)}
