"""Noticing that the controller's memory is older than the world, and what follows: a new epoch (N11).

    <state>/mark.json   holds a number that the database counts up every minute: a database that has a lower one was put back
    Hello               an agent knows up to where its journal was confirmed: a controller that has stored less was set back

Either way the epoch grows: what was under way is lost, and no storage is deleted from until it is reconciled. The first Hello
of a hypervisor in an epoch tells nothing: the epoch grew for just that reason, or the controller was restored.
"""

import asyncio
import json
import logging
from datetime import datetime
from pathlib import Path

from controller import installation, purges, system_log
from controller.cycle import stale
from controller.db import models
from controller.db.database import Database
from controller.db.statements import find_row, statement
from controller.errors import CannotStart, HypervisorNotFound
from controller.files import write_json
from controller.limits import Limits

log = logging.getLogger(__name__)

MARK_SECONDS = 60.0
SPOKEN = -1  # a hypervisor's word ends an epoch once, so that one that lies cannot end everybody's work again and again


def notice(why: str, limits: Limits, now: datetime) -> int:
    """Begin a new epoch, because our memory was set back, and end what an earlier one began. Returns the epoch."""
    epoch = installation.begin_epoch(now)
    log.error("the controller's memory was set back, a new epoch begins epoch=%d why=%s", epoch, why)
    message = f"The controller's memory was set back: {why}. Epoch {epoch} begins; nothing is deleted on a storage before it is reconciled."
    system_log.write("error", "dispatcher", message, now)
    stale.fail_earlier_epochs(limits, now)
    waiting = purges.doubt(now)
    if waiting:
        text = f"{waiting} purges that were waiting are not done: whether they were cancelled since is forgotten. Look at bmctl purge list --all"
        system_log.write("warning", "purge", text, now)
    return epoch


def heard(hypervisor_id: str, journal_id: str, acknowledged_sequence: int, limits: Limits, now: datetime) -> bool:
    """Look at what an agent knows to be confirmed, before its session begins; True when a new epoch began for it."""
    epoch = installation.get().epoch
    row = find_row(models.Hypervisor.hypervisor_id, hypervisor_id)
    if row is None:
        raise HypervisorNotFound(hypervisor_id=hypervisor_id)
    known = row.greeted_epoch == epoch
    noticed = known and acknowledged_sequence > _stored(hypervisor_id, journal_id)
    if noticed:
        epoch = notice(f"hypervisor {row.name} has confirmations that are not in the database", limits, now)
    told = SPOKEN if noticed or row.greeted_epoch == SPOKEN else epoch
    if row.greeted_epoch != told:
        statement("UPDATE hypervisor SET greeted_epoch = ? WHERE hypervisor_id = ?", told, hypervisor_id)
    return noticed


_STORED = "SELECT stored_sequence FROM agent_journal WHERE hypervisor_id = ? AND journal_id = ?"


def _stored(hypervisor_id: str, journal_id: str) -> int:
    found = statement(_STORED, hypervisor_id, journal_id)
    return int(found[0][0]) if found else 0


# ---- the mark -----------------------------------------------------------------------------------------------------------


def check_mark(file: Path, limits: Limits, now: datetime) -> bool:
    """Compare the database with the mark beside it; True when a new epoch began. Inside Database.run. Raises CannotStart."""
    told = _read(file)
    own = installation.get()
    row = models.Installation.get()
    if told is None or told[0] != own.installation_id or told[1] <= row.mark:
        return False
    notice("its database is older than the mark beside it", limits, now)
    models.Installation.update(mark=told[1]).execute()
    return True


def count() -> tuple[str, int]:
    """Count the database's mark up; return the installation's id and the mark."""
    row = models.Installation
    row.update(mark=row.mark + 1).execute()
    return installation.get().installation_id, int(row.get().mark)


async def keep_mark(database: Database, file: Path, seconds: float = MARK_SECONDS) -> None:
    """Count up, at once and then every minute, for ever. What fails is tried again."""
    while True:
        try:
            installation_id, mark = await database.run(count)
            await asyncio.to_thread(write_json, file, {"installation_id": installation_id, "mark": mark})
        except Exception:
            log.exception("the mark could not be written file=%s", file)
        await asyncio.sleep(seconds)


def _read(file: Path) -> tuple[str, int] | None:
    """Return the installation's id and mark. Raises CannotStart for a file that is none: it may be hiding a set-back."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return str(value["installation_id"]), int(value["mark"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotStart(
            f"{file} cannot be read ({type(error).__name__}); remove it only if the database is the newest"
        ) from error
