"""What is on its way to webhooks: collected once, tried until it arrives or is given up, never without bound."""

import json
from datetime import timedelta
from typing import Any

import pytest

from controller import deliveries, events, happenings, webhooks
from controller.db import models
from controller.deliveries import Delivery
from controller.errors import EtagMismatch, WebhookDeliveryNotFound, WebhookExists, WebhookNotFound
from controller.rules.deliveries import ATTEMPTS_MAX
from controller.webhooks import Webhook, WebhookChange
from tests.controller.world import World

SECRET = "known to the receiver alone"


def hook(world: World, name: str = "panel", kinds: tuple[str, ...] = ("a.",), **values: bool) -> Webhook:
    new = WebhookChange(name, "https://panel.example/", kinds, "", values.get("enabled", True), SECRET)
    return world.run(webhooks.create, new, world.vault, world.now())


def happen(world: World, *kinds: str) -> None:
    for kind in kinds:
        world.run(happenings.record, kind, world.now(), body={"x": "y"})


def collect(world: World, webhook: Webhook) -> list[str]:
    while world.run(deliveries.collect, webhook.webhook_id, world.now()):
        pass
    rows = world.run(deliveries.list_deliveries, webhook.webhook_id, limit=5000)
    return [one.kind for one in reversed(rows)]


def claim(world: World, webhook: Webhook, limit: int = 10) -> list[Delivery]:
    return world.run(deliveries.claim, webhook.webhook_id, limit, world.now())


def signed_with(world: World, webhook: Webhook) -> tuple[str, ...]:
    return world.run(webhooks.with_secrets, webhook.webhook_id, world.vault, world.now())[0]


@pytest.mark.feature("N6")
def test_events_of_interest_become_deliveries_once_from_the_beginning_on(world: World) -> None:
    happen(world, "a.before")
    webhook = hook(world)
    happen(world, "a.one", "b.other", "a.two")

    assert collect(world, webhook) == ["a.one", "a.two"]
    assert collect(world, webhook) == ["a.one", "a.two"]

    first = claim(world, webhook)[0]
    said = json.loads(first.body)
    assert said["delivery_id"] == first.delivery_id
    assert said["event"].items() >= {"sequence": first.sequence, "kind": "a.one", "facts": {"x": "y"}}.items()
    assert "job_id" not in said["event"]


@pytest.mark.feature("N6")
def test_a_delivery_is_one_senders_until_it_counts_as_gone(world: World) -> None:
    webhook = hook(world)
    happen(world, "a.one")
    collect(world, webhook)

    [mine] = claim(world, webhook)
    assert claim(world, webhook) == []
    world.clock.advance(deliveries.SENDER_GONE.total_seconds())
    [again] = claim(world, webhook)
    assert (again.delivery_id, again.attempts) == (mine.delivery_id, 2)

    world.run(deliveries.failed, mine, "late", 0.0, world.now())  # the first sender lives after all
    assert world.run(webhooks.find, "panel").failure == ""
    world.run(deliveries.arrived, again, world.now())
    world.run(deliveries.arrived, again, world.now())
    found = world.run(webhooks.find, "panel")
    assert (found.delivered_count, found.waiting_count) == (1, 0)


@pytest.mark.feature("N6")
def test_what_never_arrives_is_tried_for_hours_then_dead_and_can_be_sent_again(world: World) -> None:
    webhook = hook(world)
    happen(world, "a.one")
    collect(world, webhook)
    begun, tries = world.now(), 0
    while True:
        due = world.run(deliveries.next_due, world.now())
        if due is None:
            break
        world.clock.time = max(world.clock.time, due)
        for one in claim(world, webhook):
            tries += 1
            world.run(deliveries.failed, one, "answered 503", 0.5, world.now())
    assert tries == ATTEMPTS_MAX
    assert timedelta(hours=5) < world.now() - begun < timedelta(hours=8)
    found = world.run(webhooks.find, "panel")
    assert (found.waiting_count, found.dead_count, found.failure) == (0, 1, "answered 503")
    [dead] = world.run(deliveries.list_deliveries, webhook.webhook_id, ("dead",))

    with pytest.raises(WebhookDeliveryNotFound):
        world.run(deliveries.resend, "panel", [webhook.webhook_id], world.now())
    assert world.run(deliveries.resend, "panel", [dead.delivery_id], world.now()) == 1
    assert world.run(deliveries.resend, "panel", [], world.now()) == 0
    [once_more] = claim(world, webhook)
    assert (once_more.attempts, once_more.body) == (1, dead.body)


@pytest.mark.feature("N6")
def test_a_receiver_out_of_reach_fills_no_database_and_is_told_what_it_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "WAITING_MAX", 4)
    monkeypatch.setattr(deliveries, "COLLECT_MAX", 2)
    webhook = hook(world)
    happen(world, *["a.x"] * 10)
    waiting = collect(world, webhook)
    assert 4 <= len(waiting) < 8

    gone = world.run(events.remove_before, world.now() + timedelta(days=1), 7)
    assert gone == 7
    for one in claim(world, webhook, 100):
        world.run(deliveries.arrived, one, world.now())
    assert len(collect(world, webhook)) <= 6
    for one in claim(world, webhook, 100):
        world.run(deliveries.arrived, one, world.now())
    collect(world, webhook)
    for one in claim(world, webhook, 100):
        world.run(deliveries.arrived, one, world.now())
    found = world.run(webhooks.find, "panel")
    assert found.missed_count > 0
    # The first event, of its own creation, is of no interest: ten were, and one may be counted with those that went.
    assert 10 <= found.delivered_count + found.missed_count <= 11
    assert found.cursor == world.run(events.newest)


@pytest.mark.feature("N6")
def test_a_webhook_that_is_off_collects_nothing_and_begins_anew(world: World) -> None:
    webhook = hook(world, enabled=False)
    happen(world, "a.unwanted")
    assert collect(world, webhook) == []
    world.run(webhooks.update, "panel", WebhookChange(enabled=True), "", world.vault, world.now())
    happen(world, "a.wanted")
    assert collect(world, webhook) == ["a.wanted"]


@pytest.mark.feature("N6", "S28")
def test_a_webhook_is_changed_by_etag_and_its_secret_is_sealed(world: World) -> None:
    webhook = hook(world)
    with pytest.raises(WebhookExists):
        hook(world)
    change = WebhookChange(name="other", kinds=("job.",), secret="another secret of it")
    changed = world.run(webhooks.update, "panel", change, webhook.etag, world.vault, world.now())
    assert (changed.name, changed.kinds, changed.url) == ("other", ("job.",), webhook.url)
    assert changed.secret_fingerprint != webhook.secret_fingerprint
    with pytest.raises(EtagMismatch):
        world.run(webhooks.update, "other", WebhookChange(enabled=False), webhook.etag, world.vault, world.now())
    assert signed_with(world, changed) == ("another secret of it", SECRET)
    assert SECRET not in repr(WebhookChange(secret=SECRET))

    happen(world, "job.x")
    collect(world, changed)
    world.run(webhooks.delete, "other", world.now())
    assert world.run(deliveries.next_due, world.now()) is None
    with pytest.raises(WebhookNotFound):
        world.run(webhooks.find, "other")


@pytest.mark.feature("N6", "S28")
def test_a_secret_that_is_replaced_signs_beside_the_new_one_for_a_day(world: World) -> None:
    webhook = hook(world)

    def change(**values: Any) -> Webhook:
        return world.run(webhooks.update, "panel", WebhookChange(**values), "", world.vault, world.now())

    assert change(secret=SECRET).previous_secret_expire_time is None, "the same one is no change"
    changed = change(secret="the second of its secrets")
    assert changed.previous_secret_expire_time is not None
    assert timedelta(hours=23) < changed.previous_secret_expire_time - world.now() <= webhooks.OVERLAP
    assert signed_with(world, webhook) == ("the second of its secrets", SECRET)
    change(secret="the third of its secrets")
    assert signed_with(world, webhook) == ("the third of its secrets", "the second of its secrets")

    world.clock.advance(webhooks.OVERLAP.total_seconds())
    assert signed_with(world, webhook) == ("the third of its secrets",)
    assert world.run(models.Secret.select().where(models.Secret.row_id == webhook.webhook_id).count) == 1
    dropped = change(secret="the fourth of its secrets", drop_previous_secret=True)
    assert dropped.previous_secret_expire_time is None
    assert signed_with(world, webhook) == ("the fourth of its secrets",)


@pytest.mark.feature("N6")
def test_a_receiver_that_asks_to_be_left_alone_is_sent_nothing_for_so_long(world: World) -> None:
    webhook, other = hook(world), hook(world, "other")
    happen(world, "a.one", "a.two")
    collect(world, webhook)
    collect(world, other)
    [first] = claim(world, webhook, 1)
    world.run(deliveries.failed, first, "answered 429", 0.0, world.now(), timedelta(minutes=20))

    happen(world, "a.three")
    collect(world, webhook)
    assert claim(world, webhook) == []
    assert len(claim(world, other)) == 2, "it is one receiver's wish"
    assert world.run(deliveries.list_deliveries, webhook.webhook_id)[-1].due_time >= world.now() + timedelta(minutes=19)
    world.clock.advance(20 * 60)
    assert {one.kind for one in claim(world, webhook)} == {"a.one", "a.two", "a.three"}

    [again] = [one for one in world.run(deliveries.list_deliveries, webhook.webhook_id) if one.kind == "a.two"]
    world.run(deliveries.failed, again, "answered 503", 0.0, world.now(), timedelta(hours=1))
    moved = WebhookChange(url="https://elsewhere.example/")
    assert world.run(webhooks.update, "panel", moved, "", world.vault, world.now()).hold_time is None
