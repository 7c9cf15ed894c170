"""Webhooks over real connections, with a receiver on the loopback that the controller's settings allow; and the logs."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    audit_service_pb2,
    system_log_pb2,
    system_log_service_pb2,
    webhook_pb2,
    webhook_service_pb2,
)
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refused
from tests.servers.controller import Controller
from tests.servers.receiver import Receiver
from tests.waiting import wait_until_async

SECRET = "long enough to sign with"
CREATE, LIST = webhook_service_pb2.CreateWebhookRequest, webhook_service_pb2.ListWebhookDeliveriesRequest
TEST, GET = webhook_service_pb2.TestWebhookRequest, webhook_service_pb2.GetWebhookRequest


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    folder = tmp_path_factory.mktemp("controller") / "c"
    with Controller(folder, webhook_networks=["127.0.0.1/32"]) as running:
        yield running
    text = running.log.read_text()
    assert SECRET not in text
    assert "Traceback" not in text, text[text.index("Traceback") - 300 :][:4000]
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


async def create(api: Api, url: str, **values: Any) -> webhook_pb2.Webhook:
    request = CREATE(**{"name": fresh("hook"), "url": url, "secret": SECRET, "kinds": ["storage."], **values})
    return (await api.webhooks.CreateWebhook(request)).webhook


async def delete(api: Api, webhook: webhook_pb2.Webhook) -> None:
    await api.webhooks.DeleteWebhook(webhook_service_pb2.DeleteWebhookRequest(webhook_id=webhook.webhook_id))


async def received(receiver: Receiver, count: int) -> list[tuple[dict[str, str], bytes]]:
    async def enough() -> bool:
        return len(receiver.requests) >= count

    await wait_until_async(enough, 20, f"{count} deliveries")
    return receiver.requests


@pytest.mark.feature("N6", "S28")
async def test_what_happens_is_sent_signed_and_counted(api: Api, receiver: Receiver) -> None:
    webhook = await create(api, receiver.url)
    storage = await api.make_storage()
    [(headers, body)] = await received(receiver, 1)
    said = json.loads(body)
    assert (said["event"]["kind"], said["event"]["storage_id"]) == ("storage.created", storage.storage_id)
    assert said["delivery_id"] == headers["backup-manager-delivery"]
    signed = headers["backup-manager-timestamp"].encode() + b"." + body
    wanted = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["backup-manager-signature"] == f"v1={wanted}"

    async def counted() -> bool:
        found = (await api.webhooks.GetWebhook(GET(webhook_id=webhook.name))).webhook
        return (found.delivered_count, found.waiting_count) == (1, 0)

    await wait_until_async(counted, 10, "the delivery to be counted")
    await delete(api, webhook)


@pytest.mark.feature("N6")
async def test_what_fails_waits_and_is_not_sent_to_the_loopback_that_a_redirect_names(
    api: Api, receiver: Receiver
) -> None:
    with Receiver() as inner:
        receiver.answers, receiver.location = ["redirect"], inner.url
        webhook = await create(api, receiver.url)
        await api.make_storage()

        async def failed() -> list[webhook_pb2.WebhookDelivery]:
            rows = (await api.webhooks.ListWebhookDeliveries(LIST(webhook_id=webhook.name))).deliveries
            return [one for one in rows if one.failure]

        [delivery] = await wait_until_async(failed, 20, "the failure to be noted")
        assert "302" in delivery.failure
        assert delivery.state == webhook_pb2.WEBHOOK_DELIVERY_STATE_WAITING
        assert delivery.attempts == 1
        wait = delivery.due_time.ToMilliseconds() - delivery.attempt_time.ToMilliseconds()
        assert 10_000 <= wait < 30_000
        assert inner.connections == 0
        resend = webhook_service_pb2.ResendWebhookDeliveriesRequest
        request = resend(webhook_id=webhook.name, delivery_ids=[delivery.delivery_id])
        assert await refused(api.webhooks.ResendWebhookDeliveries(request)) == "WEBHOOK_DELIVERY_NOT_FOUND"
        await delete(api, webhook)


@pytest.mark.feature("N6")
async def test_a_receiver_that_is_told_too_much_is_left_alone_as_it_asks(api: Api, receiver: Receiver) -> None:
    receiver.answers, receiver.headers = [429], ["Retry-After: 600"]
    webhook = await create(api, receiver.url)
    await api.make_storage()

    async def held() -> bool:
        return (await api.webhooks.GetWebhook(GET(webhook_id=webhook.name))).webhook.HasField("hold_time")

    await wait_until_async(held, 20, "the wish to be noted")
    before = len(receiver.requests)
    await api.make_storage()

    async def waiting() -> bool:
        return (await api.webhooks.GetWebhook(GET(webhook_id=webhook.name))).webhook.waiting_count >= 2

    await wait_until_async(waiting, 20, "the next event to wait")
    assert len(receiver.requests) == before
    await delete(api, webhook)


@pytest.mark.feature("N6")
async def test_a_receiver_that_stalls_holds_up_nobody_else_and_no_stop(api: Api, receiver: Receiver) -> None:
    with Receiver() as stalling:
        stalling.answers = ["stall"] * 20
        slow, quick = await create(api, stalling.url), await create(api, receiver.url)
        for _ in range(6):
            await api.make_storage()
        await received(receiver, 6)
        assert stalling.connections <= 4
        await delete(api, slow)
        await delete(api, quick)


@pytest.mark.feature("N6")
async def test_a_test_says_how_it_went_and_is_no_event(api: Api, receiver: Receiver) -> None:
    webhook = await create(api, receiver.url, disabled=True)
    receiver.answers = [200, 503]
    good = await api.webhooks.TestWebhook(TEST(webhook_id=webhook.name))
    assert (good.delivered, good.http_status, good.failure) == (True, 200, "")
    assert json.loads(receiver.requests[0][1])["event"]["kind"] == "webhook.test"
    bad = await api.webhooks.TestWebhook(TEST(webhook_id=webhook.webhook_id))
    assert (bad.delivered, bad.http_status, bad.failure) == (False, 503, "answered 503")
    await api.make_storage()
    assert list((await api.webhooks.ListWebhookDeliveries(LIST(webhook_id=webhook.name))).deliveries) == []
    assert not webhook.enabled
    await delete(api, webhook)


@pytest.mark.feature("N6")
@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "http://127.0.0.2/"}, "url"),
        ({"url": "http://[::1]/"}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "gopher://a/"}, "url"),
        ({"name": "a b"}, "name"),
        ({"secret": "short"}, "secret"),
        ({"secret": "x" * 257}, "secret"),
        ({"kinds": ["what"]}, "kinds"),
        ({"ca_certificate": "no PEM"}, "ca_certificate"),
    ],
)
async def test_a_webhook_that_makes_no_sense_is_refused_by_field(api: Api, values: dict[str, Any], field: str) -> None:
    request = CREATE(**{"name": "x", "url": "https://panel.example/", "secret": SECRET, **values})
    assert await field_refused(api.webhooks.CreateWebhook(request)) == field


@pytest.mark.feature("N6")
async def test_webhooks_are_listed_changed_and_deleted(api: Api) -> None:
    made = [await create(api, "https://panel.example/hook", disabled=True) for _ in range(3)]
    assert await refused(create(api, "https://panel.example/", name=made[0].name)) == "WEBHOOK_EXISTS"
    request = webhook_service_pb2.ListWebhooksRequest
    rows = await all_pages(lambda token: api.webhooks.ListWebhooks(request(page_size=2, page_token=token)), "webhooks")
    assert [row for row in rows if row in made] == made
    update = webhook_service_pb2.UpdateWebhookRequest(
        webhook=webhook_pb2.Webhook(webhook_id=made[0].name, kinds=["job."], etag=made[0].etag),
        update_mask=FieldMask(paths=["kinds", "secret"]),
        secret="another that is long enough",
    )
    changed = (await api.webhooks.UpdateWebhook(update)).webhook
    assert list(changed.kinds) == ["job."]
    assert changed.secret_fingerprint not in {"", made[0].secret_fingerprint}
    assert changed.HasField("previous_secret_expire_time")
    assert await refused(api.webhooks.UpdateWebhook(update)) == "ETAG_MISMATCH"
    drop = webhook_service_pb2.UpdateWebhookRequest(
        webhook=webhook_pb2.Webhook(webhook_id=made[0].name), drop_previous_secret=True
    )
    assert not (await api.webhooks.UpdateWebhook(drop)).webhook.HasField("previous_secret_expire_time")
    for one in made:
        await delete(api, one)
    assert await refused(api.webhooks.GetWebhook(GET(webhook_id=made[0].name))) == "WEBHOOK_NOT_FOUND"


@pytest.mark.feature("N5")
async def test_who_did_what_is_listed_by_every_filter(api: Api) -> None:
    request = audit_service_pb2.ListAuditEntriesRequest
    storage = await api.make_storage()
    await refused(api.make_storage(storage.name))

    async def found(**values: Any) -> list[str]:
        rows = await all_pages(
            lambda token: api.audit.ListAuditEntries(request(page_size=3, page_token=token, **values)), "entries"
        )
        assert [row.sequence for row in rows] == sorted((row.sequence for row in rows), reverse=True)
        return [row.outcome for row in rows]

    assert await found(resource=storage.name) == ["STORAGE_EXISTS", "OK"]
    assert await found(resource=storage.storage_id) == ["OK"]
    assert await found(resource=storage.name, failed=True) == ["STORAGE_EXISTS"]
    assert await found(resource=storage.name, outcome="OK") == ["OK"]
    assert await found(resource=storage.name, method="StorageService/") == ["STORAGE_EXISTS", "OK"]
    assert await found(resource=storage.name, method="Delete") == []
    assert await found(resource=storage.name, caller="admin") == ["STORAGE_EXISTS", "OK"]
    assert await found(caller="nobody") == []


@pytest.mark.feature("M9")
async def test_the_system_log_is_listed_and_wrong_filters_are_refused(api: Api) -> None:
    request = system_log_service_pb2.ListSystemLogEntriesRequest
    wanted = request(levels=[system_log_pb2.LOG_LEVEL_ERROR], sources=[system_log_pb2.LOG_SOURCE_PURGE], text="x")
    assert list((await api.system_log.ListSystemLogEntries(wanted)).entries) == []
    assert await field_refused(api.system_log.ListSystemLogEntries(request(server_id="web1"))) == "server_id"
    assert await field_refused(api.system_log.ListSystemLogEntries(request(text="x" * 129))) == "text"
