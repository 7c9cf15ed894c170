"""The tick's purges: what ended is concluded, and what is due begins, at most Max Purges Per Tick (K3)."""

import logging
from typing import TYPE_CHECKING

from controller import purges, settings

if TYPE_CHECKING:
    from controller.cycle.tick import Round

log = logging.getLogger(__name__)


async def step(around: "Round") -> None:
    """Do a tick's share of purging; each purge in a transaction of its own, and one that we stumble over costs only itself."""
    run, now = around.database.run, around.now
    most = (await run(settings.get)).max_purges_per_tick
    for purge_id in await run(purges.running):
        try:
            await run(purges.settle, purge_id, now)
        except Exception:
            log.exception("a purge cannot be concluded purge_id=%s", purge_id)
    for purge_id in await run(purges.due, most, now):
        try:
            await run(purges.start, purge_id, around.limits, around.vault, now)
        except Exception:
            log.exception("a purge cannot be started purge_id=%s", purge_id)
            await run(purges.put_off, purge_id, now)
