"""Webhooks as rows: where events go, signed with a secret that is sealed and never shown (S28).

A secret that is replaced goes on signing beside the new one for OVERLAP, so that a receiver can be told the new one at leisure.

Sync functions, run by `Database.run`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controller import events, happenings
from controller.db import models, secrets
from controller.db.secrets import Vault
from controller.db.statements import statement
from controller.errors import EtagMismatch, WebhookExists, WebhookNotFound
from engine.ids import new_id

TABLE, SECRET, PREVIOUS = "webhook", "secret", "previous_secret"
OVERLAP = timedelta(hours=24)
Row, _Delivery = models.Webhook, models.WebhookDelivery
_PLAIN = ("name", "url", "kinds", "ca_certificate", "enabled")


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as it stands, without its secret."""

    webhook_id: str
    name: str
    url: str
    kinds: tuple[str, ...]
    ca_certificate: str
    enabled: bool
    cursor: int
    delivered_count: int
    missed_count: int
    waiting_count: int
    dead_count: int
    success_time: datetime | None
    failure_time: datetime | None
    failure: str
    hold_time: datetime | None
    create_time: datetime
    update_time: datetime
    secret_fingerprint: str
    previous_secret_expire_time: datetime | None
    etag: str


@dataclass(frozen=True, slots=True)
class WebhookChange:
    """New values; None leaves one as it is."""

    name: str | None = None
    url: str | None = None
    kinds: Sequence[str] | None = None
    ca_certificate: str | None = None
    enabled: bool | None = None
    secret: str | None = field(default=None, repr=False)
    drop_previous_secret: bool = False


def create(new: WebhookChange, vault: Vault, now: datetime) -> Webhook:
    """Make a webhook; all values must be given. It is sent what happens from now on. Raises WebhookExists."""
    webhook_id = new_id(now)
    _check_name(new.name or "", webhook_id)
    values = {name: getattr(new, name) for name in _PLAIN} | {"kinds": list(new.kinds or ())}
    cursor = events.newest()
    Row.insert(webhook_id=webhook_id, cursor=cursor, create_time=now, update_time=now, **values).execute()
    secrets.put(vault, TABLE, webhook_id, SECRET, new.secret or "", now)
    _event("webhook.created", webhook_id, now)
    return find(webhook_id)


def find(reference: str) -> Webhook:
    """Return the webhook with this id or name. Raises WebhookNotFound."""
    row = Row.get_or_none(Row.webhook_id == reference) or Row.get_or_none(Row.name == reference)
    if row is None:
        raise WebhookNotFound(webhook_id=reference)
    return _webhook(row)


def list_webhooks(*, after: tuple[str] | None = None, limit: int = 101) -> list[Webhook]:
    """Return webhooks by name, those after the name in `after`."""
    query = Row.select() if after is None else Row.select().where(Row.name > after[0])
    return [_webhook(row) for row in query.order_by(Row.name).limit(limit)]


def update(reference: str, change: WebhookChange, etag: str, vault: Vault, now: datetime) -> Webhook:
    """Change a webhook. Raises WebhookNotFound, WebhookExists, EtagMismatch.

    One that is switched on again begins with what happens from now on: what it missed was not wanted.
    """
    old = find(reference)
    if etag and etag != old.etag:
        raise EtagMismatch(etag=old.etag)
    values: dict[str, Any] = {name: getattr(change, name) for name in _PLAIN if getattr(change, name) is not None}
    if "name" in values:
        _check_name(values["name"], old.webhook_id)
    if "kinds" in values:
        values["kinds"] = list(values["kinds"])
    if change.enabled and not old.enabled:
        values["cursor"] = events.newest()
    if change.enabled or change.url is not None:
        values["hold_time"] = None
    Row.update(**values, update_time=now, version=Row.version + 1).where(Row.webhook_id == old.webhook_id).execute()
    if change.secret is not None:
        _replace_secret(old.webhook_id, change.secret, vault, now)
    if change.drop_previous_secret:
        secrets.remove(TABLE, old.webhook_id, PREVIOUS)
    _event("webhook.updated", old.webhook_id, now)
    return find(old.webhook_id)


def delete(reference: str, now: datetime) -> None:
    """Forget a webhook, its secret and all that is on its way. Raises WebhookNotFound."""
    webhook_id = find(reference).webhook_id
    secrets.remove_all(TABLE, webhook_id)
    _Delivery.delete().where(_Delivery.webhook == webhook_id).execute()
    Row.delete().where(Row.webhook_id == webhook_id).execute()
    _event("webhook.deleted", webhook_id, now)


def enabled_ids() -> list[str]:
    """Return the ids of the webhooks that are switched on."""
    return [
        webhook_id for (webhook_id,) in statement("SELECT webhook_id FROM webhook WHERE enabled ORDER BY webhook_id")
    ]


def with_secrets(webhook_id: str, vault: Vault, now: datetime) -> tuple[tuple[str, ...], Webhook]:
    """Return what a webhook's deliveries are signed with, the present secret first, and the webhook. For the courier alone.

    An old secret whose time is over is forgotten. Raises WebhookNotFound, BoxDamaged.
    """
    webhook = find(webhook_id)
    until = webhook.previous_secret_expire_time
    if until is not None and until <= now:
        secrets.remove(TABLE, webhook_id, PREVIOUS)
    known = secrets.open_all(vault, TABLE, webhook_id)
    return tuple(known[name] for name in (SECRET, PREVIOUS) if name in known), webhook


def _replace_secret(webhook_id: str, secret: str, vault: Vault, now: datetime) -> None:
    """Set a new secret; the one before it goes on signing for a while. The same one again changes nothing."""
    old = secrets.open_all(vault, TABLE, webhook_id).get(SECRET, "")
    if old == secret:
        return
    if old:
        secrets.put(vault, TABLE, webhook_id, PREVIOUS, old, now)
    secrets.put(vault, TABLE, webhook_id, SECRET, secret, now)


def _check_name(name: str, webhook_id: str) -> None:
    if Row.select().where((Row.name == name) & (Row.webhook_id != webhook_id)).exists():
        raise WebhookExists(name=name)


def _webhook(row: models.Webhook) -> Webhook:
    def count(state: str) -> int:
        return int(_Delivery.select().where((_Delivery.webhook == row.webhook_id) & (_Delivery.state == state)).count())

    replace_time = secrets.set_time(TABLE, row.webhook_id, PREVIOUS)
    taken = {
        "kinds", "waiting_count", "dead_count", "secret_fingerprint", "previous_secret_expire_time", "etag",
    }  # fmt: skip
    return Webhook(
        **{name: getattr(row, name) for name in Webhook.__dataclass_fields__ if name not in taken},
        kinds=tuple(row.kinds),
        waiting_count=count("waiting"),
        dead_count=count("dead"),
        secret_fingerprint=secrets.fingerprints(TABLE, row.webhook_id).get(SECRET, ""),
        previous_secret_expire_time=replace_time + OVERLAP if replace_time else None,
        etag=str(row.version),
    )


def _event(kind: str, webhook_id: str, now: datetime) -> None:
    happenings.record(kind, now, body={"webhook_id": webhook_id})
