"""Has recovery bundles written to the storage that was chosen for them, after changes (N11).

    every minute: our turn? ──► what became of the last one ──► is one wanted, and could it go? ──► read everything as at
    one instant ──► changed? ──► seal it, and hand it to bundles.py

Reading and sealing happen in a thread, on a connection of their own: the event loop and the database's thread go on. Of several
controllers on one database, the one whose turn it is does this; it needs the recovery key in its own state folder.
"""

import asyncio
import logging
from collections.abc import Callable
from uuid import uuid4

from controller import bundle, bundles, events, rescue
from controller.clock import Clock
from controller.config import Settings
from controller.context import Context
from controller.cycle import turn
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import CannotStart, RecoveryKeyMissing
from controller.jobs import Failure
from controller.limits import Limits
from engine.errors import BackupManagerError

log = logging.getLogger(__name__)

REQUESTER = "recovery"
_NAME = "bundle"
_LOOKS_MAX = 60  # rounds without a new event after which everything is looked at all the same


class Bundler:
    """`run` goes on until it is cancelled; `once` does one round. On the event loop."""

    def __init__(
        self, settings: Settings, database: Database, vault: Vault, clock: Clock, limits: Callable[[], Limits]
    ) -> None:
        self._settings = settings
        self._database = database
        self._vault = vault
        self._clock = clock
        self._limits = limits
        self._holder = str(uuid4())
        self._seen = -1  # the newest event at the last look
        self._skipped = 0

    async def run(self, seconds: float) -> None:
        """Do a round every so often. What fails is tried again."""
        while True:
            try:
                if await self._database.run(turn.take, _NAME, self._holder):
                    await self.once()
            except Exception:
                log.exception("a round of the recovery bundle failed")
            await asyncio.sleep(seconds)

    async def once(self) -> str:
        """Settle what is under way, and begin a bundle if something has changed; return its id, "" for none."""
        context = Context(self._limits(), self._vault, REQUESTER, self._clock.now())
        await self._database.run(bundles.settle, context)
        if not await self._database.run(bundles.wanted, context.now):
            return ""
        newest = await self._database.run(events.newest)
        if newest == self._seen and self._skipped < _LOOKS_MAX:
            self._skipped += 1
            return ""
        try:
            begun = await self._begin(context)
        except (BackupManagerError, CannotStart) as error:
            known = Failure.of(error) if isinstance(error, BackupManagerError) else Failure("INTERNAL", str(error))
            log.warning("no recovery bundle detail=%s", error)
            await self._database.run(bundles.refused, known, context.now)
            return ""
        self._seen, self._skipped = newest, 0
        return begun

    async def _begin(self, context: Context) -> str:
        key = await asyncio.to_thread(bundle.load_key, self._settings.recovery_key_file)
        if key is None:
            raise RecoveryKeyMissing
        await self._database.run(bundles.check, context)
        await self._database.run(bundles.note_use, context.now)  # so that what follows from writing it is in it
        value = await asyncio.to_thread(rescue.collect, self._settings, context.now)
        digest = await asyncio.to_thread(rescue.digest, value)
        if not await self._database.run(bundles.is_new, digest, context.now):
            return ""
        sealed = await asyncio.to_thread(bundle.seal, value, key)
        return await self._database.run(bundles.begin, sealed, digest, context)
