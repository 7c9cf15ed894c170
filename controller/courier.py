"""Sending webhooks' deliveries: collects what happened, tries what is due, and writes down how that went.

    log of events ─► collect, webhook by webhook ─► claim what is due ─► at most IN_FLIGHT_MAX attempts at once ─► arrived | failed
         ▲ woken by each commit with events, by the next due time, and every LOOK_SECONDS (another controller may have written)

At most IN_FLIGHT_OF_ONE go to one webhook at once, so that a receiver that stalls holds up nobody else's. What is claimed is on disk:
a controller that dies in the middle of an attempt leaves a delivery that is due again a minute later.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from datetime import timedelta

from controller import deliveries, posting, webhooks
from controller.changes import Changes, Watch
from controller.clock import Clock
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.deliveries import Delivery
from controller.errors import WebhookNotFound
from controller.posting import Post, PostFailed
from controller.rules.targets import Network

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 32
IN_FLIGHT_OF_ONE = 4
LOOK_SECONDS = 5.0
_LEAST_SECONDS = 0.05  # between two rounds, so that many small commits make one


class Courier:
    """Runs from `start` to `stop`, on the event loop."""

    def __init__(
        self, database: Database, vault: Vault, clock: Clock, changes: Changes, allowed: Sequence[Network], version: str
    ) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._changes = changes
        self._allowed = tuple(allowed)
        self._user_agent = f"backup-manager/{version}"
        self._luck = random.Random()
        self._sending: dict[asyncio.Task[None], str] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="courier")

    async def stop(self) -> None:
        """Break off what is under way; it is tried again after the next start."""
        tasks = [*self._sending, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test(self, reference: str) -> tuple[int, str, timedelta]:
        """Send a test to a webhook now. Returns the HTTP status, why it failed ("" if not), and how long it took.

        Raises WebhookNotFound.
        """
        webhook = await self._database.run(webhooks.find, reference)
        now = self._clock.now()
        event = {"sequence": 0, "time": now.isoformat().replace("+00:00", "Z"), "kind": "webhook.test", "facts": {}}
        delivery_id = f"test-{webhook.webhook_id}"
        started = asyncio.get_running_loop().time()
        try:
            status, failure = (
                await self._post(webhook.webhook_id, delivery_id, deliveries.body_of(delivery_id, event)),
                "",
            )
        except PostFailed as error:
            status, failure = error.status, str(error)
        return status, failure, timedelta(seconds=asyncio.get_running_loop().time() - started)

    async def _run(self) -> None:
        with self._changes.watch_events() as watch:
            while True:
                seen = watch.newest
                try:
                    wait = await self._round()
                except Exception:
                    log.exception("webhooks could not be looked after; trying again")
                    wait = LOOK_SECONDS
                await self._pause(watch, seen, wait)
                await asyncio.sleep(_LEAST_SECONDS)

    async def _pause(self, watch: Watch, seen: int, seconds: float) -> None:
        """Wait for an event, for the end of an attempt, or for the time to pass."""
        if self._changes.closed:
            await asyncio.sleep(LOOK_SECONDS)
            return
        news = asyncio.create_task(watch.wait(seen, seconds))
        try:
            await asyncio.wait({news, *self._sending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    async def _round(self) -> float:
        """Collect and begin what is due; return how long nothing will be, in seconds."""
        now = self._clock.now()
        more = False
        for webhook_id in await self._database.run(webhooks.enabled_ids):
            more |= await self._database.run(deliveries.collect, webhook_id, now)
            own = list(self._sending.values()).count(webhook_id)
            room = min(IN_FLIGHT_MAX - len(self._sending), IN_FLIGHT_OF_ONE - own)
            if room > 0:
                for delivery in await self._database.run(deliveries.claim, webhook_id, room, now):
                    self._begin(delivery)
        if more:
            return 0.0
        due = await self._database.run(deliveries.next_due, now)
        if due is None or due <= now:  # what is due now belongs to a busy webhook
            return LOOK_SECONDS
        return min(LOOK_SECONDS, (due - now).total_seconds())

    def _begin(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._attempt(delivery), name=f"webhook {delivery.webhook_id}")
        self._sending[task] = delivery.webhook_id
        task.add_done_callback(self._sending.pop)

    async def _attempt(self, delivery: Delivery) -> None:
        try:
            await self._post(delivery.webhook_id, delivery.delivery_id, delivery.body)
        except PostFailed as error:
            log.info("webhook failed webhook_id=%s attempt=%d why=%s", delivery.webhook_id, delivery.attempts, error)
            now = self._clock.now()
            await self._database.run(deliveries.failed, delivery, str(error), self._luck.random(), now, error.hold)
        except WebhookNotFound:
            log.info("webhook deleted meanwhile webhook_id=%s", delivery.webhook_id)
        except Exception:
            log.exception("webhook failed by a fault of ours webhook_id=%s", delivery.webhook_id)
            text = "a fault of the controller; see its log"
            await self._database.run(deliveries.failed, delivery, text, self._luck.random(), self._clock.now())
        else:
            await self._database.run(deliveries.arrived, delivery, self._clock.now())

    async def _post(self, webhook_id: str, delivery_id: str, body: bytes) -> int:
        now = self._clock.now()
        secrets, webhook = await self._database.run(webhooks.with_secrets, webhook_id, self._vault, now)
        post = Post(webhook.url, delivery_id, body, secrets, webhook.ca_certificate, self._user_agent)
        return await posting.send(post, self._allowed, now)
