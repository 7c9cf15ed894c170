"""Events on their way to webhooks.

    log of events ──collect──► waiting ──claim──► (an attempt) ──arrived──► gone, counted
                                  ▲                   └─failed─► waiting, later │ dead ──resend──► waiting
At most WAITING_MAX wait for one webhook: beyond that nothing is collected, and the events stay in the log for as long as they
are kept. A claim is one conditional statement that also says when its sender counts as gone, so of two controllers one sends; one
that is killed in the middle has it sent again. So a delivery arrives at least once, and its id tells repetitions apart.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controller import events, webhooks
from controller.db import models
from controller.db.fields import from_microseconds, to_microseconds
from controller.db.statements import statement
from controller.errors import CursorExpired, WebhookDeliveryNotFound, WebhookNotFound
from controller.events import EventFilter
from controller.rules.deliveries import wait_after
from controller.webhooks import Webhook
from engine.ids import new_id

WAITING, DEAD = "waiting", "dead"
WAITING_MAX = 1000
COLLECT_MAX = 200  # events looked at in one transaction
SENDER_GONE = timedelta(seconds=60)  # several times what an attempt may take
FAILURE_CHARACTERS_MAX = 256
Row, _Webhook = models.WebhookDelivery, models.Webhook


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one webhook. `body` is what is sent."""

    delivery_id: str
    webhook_id: str
    sequence: int
    kind: str
    state: str
    attempts: int
    create_time: datetime
    due_time: datetime
    attempt_time: datetime | None
    failure: str
    body: bytes


def body_of(delivery_id: str, event: dict[str, object]) -> bytes:
    return json.dumps({"delivery_id": delivery_id, "event": event}, separators=(",", ":")).encode()


def collect(webhook_id: str, now: datetime) -> bool:
    """Make deliveries of the next events for one webhook; tell whether there may be more to collect.

    The cursor's move is the claim: of two controllers at it, one makes them.
    """
    try:
        webhook = webhooks.find(webhook_id)
    except WebhookNotFound:
        return False  # deleted a moment ago
    if not webhook.enabled or webhook.waiting_count >= WAITING_MAX:
        return False
    missed = 0
    try:
        found = events.read(EventFilter(), webhook.cursor, COLLECT_MAX)
    except (
        CursorExpired
    ) as error:  # too long out of reach; or the database was put back, and nothing of ours is ahead of it
        reached = min(int(error.facts["oldest"]) - 1, int(error.facts["newest"]))
        missed = max(0, reached - webhook.cursor)
        found = events.Reading((), reached if missed else int(error.facts["newest"]), True)
    if found.cursor == webhook.cursor:
        return False
    moved = _Webhook.update(cursor=found.cursor, missed_count=_Webhook.missed_count + missed).where(
        (_Webhook.webhook_id == webhook_id) & (_Webhook.cursor == webhook.cursor)
    )
    if moved.execute() != 1:
        return True
    for event in found.events:
        if events.interests(webhook.kinds, event.kind):
            _insert(webhook, event, now)
    return found.more


def claim(webhook_id: str, limit: int, now: datetime) -> list[Delivery]:
    """Take a webhook's deliveries that are due, oldest first, at most `limit`; none while its receiver wants to be left alone."""
    if _Webhook.select().where((_Webhook.webhook_id == webhook_id) & (_Webhook.hold_time > now)).exists():
        return []
    query = (
        Row.select(Row.delivery_id)
        .where((Row.webhook == webhook_id) & (Row.state == WAITING) & (Row.due_time <= now))
        .order_by(Row.due_time, Row.sequence)
        .limit(limit)
    )
    taken: list[Delivery] = []
    for row in list(query):
        mine = (
            Row.update(due_time=now + SENDER_GONE, attempts=Row.attempts + 1, attempt_time=now)
            .where((Row.delivery_id == row.delivery_id) & (Row.state == WAITING) & (Row.due_time <= now))
            .returning(Row)
            .execute()
        )
        taken += [_delivery(one) for one in list(mine)]
    return taken


_NEXT_DUE = """
    SELECT MIN(d.due_time) FROM webhook_delivery d JOIN webhook w ON w.webhook_id = d.webhook_id
    WHERE d.state = ? AND w.enabled AND (w.hold_time IS NULL OR w.hold_time <= ?)
"""


def next_due(now: datetime) -> datetime | None:
    """Return when the next delivery wants to be tried, None when none waits but those that are held back."""
    ((due_time,),) = statement(_NEXT_DUE, WAITING, to_microseconds(now))
    return None if due_time is None else from_microseconds(due_time)


def arrived(delivery: Delivery, now: datetime) -> None:
    """The receiver has it."""
    if Row.delete().where(_attempt(delivery)).execute():
        _Webhook.update(success_time=now, delivered_count=_Webhook.delivered_count + 1).where(
            _Webhook.webhook_id == delivery.webhook_id
        ).execute()


def failed(delivery: Delivery, failure: str, luck: float, now: datetime, hold: timedelta = timedelta(0)) -> None:
    """It did not arrive: try later, or give it up. Nothing changes if somebody else has taken it meanwhile.

    For `hold` nothing more is sent to its receiver, which asked for that.
    """
    text = failure[:FAILURE_CHARACTERS_MAX]
    wait = wait_after(delivery.attempts, luck)
    later = {"state": DEAD} if wait is None else {"due_time": now + max(wait, hold)}
    if Row.update(failure=text, **later).where(_attempt(delivery)).execute():
        held = {"hold_time": now + hold} if hold else {}
        _Webhook.update(failure_time=now, failure=text, **held).where(
            _Webhook.webhook_id == delivery.webhook_id
        ).execute()


def list_deliveries(
    webhook_id: str, states: Sequence[str] = (), *, after: tuple[int] | None = None, limit: int = 101
) -> list[Delivery]:
    """Return a webhook's deliveries, newest first, those after the sequence in `after`; a webhook has one of each event."""
    query = Row.select().where(Row.webhook == webhook_id)
    if states:
        query = query.where(Row.state.in_(list(states)))
    if after:
        query = query.where(Row.sequence < after[0])
    return [_delivery(row) for row in query.order_by(Row.sequence.desc()).limit(limit)]


def resend(reference: str, delivery_ids: Sequence[str], now: datetime) -> int:
    """Let dead deliveries wait again, those given or all of a webhook. Returns how many. Raises WebhookDeliveryNotFound."""
    webhook_id = webhooks.find(reference).webhook_id
    dead = (Row.webhook == webhook_id) & (Row.state == DEAD)
    if delivery_ids:
        known = {row.delivery_id for row in Row.select().where(dead & Row.delivery_id.in_(list(delivery_ids)))}
        for one in delivery_ids:
            if one not in known:
                raise WebhookDeliveryNotFound(delivery_id=one, webhook_id=webhook_id)
        dead &= Row.delivery_id.in_(list(delivery_ids))
    return int(Row.update(state=WAITING, attempts=0, due_time=now).where(dead).execute())


def remove_dead(before: datetime, limit: int) -> int:
    """Remove deliveries that were given up and made before a time, at most `limit`. Returns how many went."""
    old = Row.select(Row.delivery_id).where((Row.state == DEAD) & (Row.create_time < before)).limit(limit)
    return int(Row.delete().where(Row.delivery_id.in_([row.delivery_id for row in list(old)])).execute())


def _insert(webhook: Webhook, event: events.Event, now: datetime) -> None:
    delivery_id = new_id(now)
    Row.insert(
        delivery_id=delivery_id,
        webhook=webhook.webhook_id,
        sequence=event.sequence,
        kind=event.kind,
        body=body_of(delivery_id, events.to_json(event)),
        state=WAITING,
        create_time=now,
        due_time=now,
    ).execute()


def _attempt(delivery: Delivery) -> object:
    """Return the condition under which this attempt is still the one that counts."""
    return (Row.delivery_id == delivery.delivery_id) & (Row.attempts == delivery.attempts) & (Row.state == WAITING)


def _delivery(row: Any) -> Delivery:  # peewee's types do not know of webhook_id
    taken = {"webhook_id", "body"}
    return Delivery(
        **{name: getattr(row, name) for name in Delivery.__dataclass_fields__ if name not in taken},
        webhook_id=row.webhook_id,
        body=bytes(row.body),
    )
