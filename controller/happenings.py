"""The one log of what happens (N6): recorded in the transaction of the change, read in an order that never changes.

    record(…) ──► event_pending ──┐ at the end of the group's transaction, under a lock that lasts until its commit:
    record(…) ──► event_pending ──┴──► event, with sequences ──► COMMIT ──► those who watch are woken

Numbers are given at the commit and not at `record`: two controllers on one PostgreSQL would else number in one order and commit in
another, and a reader who has seen 12 would never look for an 11 that appears behind it. So whoever has read up to a sequence
has read everything below it. A number is never given twice, also after its event was removed.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controller.db import models
from controller.db.notes import note
from controller.db.numbering import TOPIC
from controller.db.statements import insert_rows

_KIND = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*")


def record(
    kind: str,
    now: datetime,
    *,
    job_id: str = "",
    server_id: str = "",
    storage_id: str = "",
    hypervisor_id: str = "",
    schedule_id: str = "",
    batch_id: str = "",
    body: dict[str, Any] | None = None,
) -> None:
    """Record what the transaction of this thread does; it happened when, and only if, that is committed.

    `kind` is thing.what, such as `job.running`; `body` has a few facts in JSON types, and no secret. Inside Database.run.
    """
    happened = {
        "time": now,
        "kind": kind,
        "job_id": job_id,
        "server_id": server_id,
        "storage_id": storage_id,
        "hypervisor_id": hypervisor_id,
        "schedule_id": schedule_id,
        "batch_id": batch_id,
        "body": body,
    }
    record_all([happened])


def record_all(happened: Sequence[dict[str, Any]]) -> None:
    """Record many at once, in their order. Each has `time`, `kind`, `body` and the ids of what it is about, all the same ones."""
    for one in happened:
        if not _KIND.fullmatch(one["kind"]):
            raise ValueError(f"{one['kind']!r} is no kind of event")
    if happened:
        insert_rows(models.EventPending, happened)
        note(TOPIC, "")
