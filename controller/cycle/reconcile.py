"""Comparing the catalog with each storage, once a day and at once in a new epoch (N10); at most STORAGES_MAX a round."""

import logging
from typing import TYPE_CHECKING

from controller import orders, reconciliation
from controller.context import Context
from controller.db.models import proxy
from controller.order_types import ReindexOrder
from controller.reconciliation import Due
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)

STORAGES_MAX = 4  # each reads every manifest of its storage
REQUESTER = "reconciliation"


async def step(around: "Round") -> None:
    """Order what is due."""
    for due in (await around.database.run(reconciliation.due, around.limits, around.now))[:STORAGES_MAX]:
        await around.database.run(begin, due, Context(around.limits, around.vault, REQUESTER, around.now))


def begin(due: Due, context: Context) -> str:
    """Order the reading of one storage and return its job's id; "" where it cannot be ordered now."""
    reconciliation.tried(due, context.now)
    try:
        with proxy.atomic():
            return orders.start(ReindexOrder(due.storage_id, due.hypervisor_id), context)
    except BackupManagerError as error:
        log.warning("storage not reconciled storage_id=%s reason=%s", due.storage_id, error.reason)
        return ""
