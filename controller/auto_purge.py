"""What DeleteServer sets going, the purge of the server's backups some days later, and whether that still holds (K1)."""

from datetime import datetime, timedelta

from controller import happenings, settings
from controller.db import models
from controller.db.statements import find_row
from controller.errors import PurgeEnded
from engine.ids import new_id


def schedule(server_id: str, now: datetime) -> None:
    """Have a server purged after Purge Delay Days. Called in the transaction of DeleteServer, and nowhere else.

    It can be cancelled until it runs, and holds only as long as the server is deleted then (purges.py).
    """
    purge_id = new_id(now)
    models.Purge.insert(
        purge_id=purge_id,
        server_id=server_id,
        kind="deleted",
        state="scheduled",
        requester="purge",
        create_time=now,
        due_time=now + timedelta(days=settings.get().purge_delay_days),
    ).execute()
    happenings.record("purge.scheduled", now, server_id=server_id, body={"purge_id": purge_id})


def holds(kind: str, server_id: str) -> bool:
    """Tell whether a purge is still meant: one that follows DeleteServer only while the server is deleted."""
    if kind != "deleted":
        return True
    server = find_row(models.Server.server_id, server_id)
    return server is not None and server.delete_time is not None


def check(purge_id: str) -> None:
    """Raise PurgeEnded unless the purge of a job that leaves the queue is still to be done."""
    purge = find_row(models.Purge.purge_id, purge_id)
    if purge is None or purge.state != "running" or not holds(purge.kind, purge.server_id):
        raise PurgeEnded(purge_id=purge_id, state="gone" if purge is None else purge.state)
