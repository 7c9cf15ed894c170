"""Who this installation is."""

from dataclasses import dataclass
from datetime import datetime

from controller.db import models
from controller.db.statements import find_row
from controller.errors import CannotStart
from engine.ids import new_id


@dataclass(frozen=True, slots=True)
class Installation:
    """`epoch` grows when a lost controller is restored: what was begun before counts no more. `epoch_time`: None in the first."""

    installation_id: str
    epoch: int
    epoch_time: datetime | None = None


def create(now: datetime) -> Installation:
    """Make the installation's identity, or return the one there is."""
    models.Installation.insert(number=1, installation_id=new_id(now), epoch=1, create_time=now).on_conflict(
        conflict_target=[models.Installation.number], update={models.Installation.epoch: models.Installation.epoch}
    ).execute()
    return get()


def get() -> Installation:
    """Return the identity. Raises CannotStart when the database has none: it was never initialized."""
    row = find_row(models.Installation.number, 1)
    if row is None:
        raise CannotStart("the database is empty; run bm-controller init first")
    return Installation(row.installation_id, row.epoch, row.epoch_time)


def begin_epoch(now: datetime) -> int:
    """Let a new epoch begin, and return it."""
    row = models.Installation
    row.update(epoch=row.epoch + 1, epoch_time=now).execute()
    return get().epoch
