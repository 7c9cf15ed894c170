"""Webhooks: where events are sent to."""

import asyncio
import ssl

from google.protobuf.duration_pb2 import Duration

from clients.gen.backupmanager.v1 import webhook_pb2, webhook_service_pb2_grpc
from clients.gen.backupmanager.v1 import webhook_service_pb2 as messages
from controller import deliveries, webhooks
from controller.deliveries import Delivery
from controller.errors import InvalidField
from controller.rules import targets
from controller.services import check, convert, convert_events, paging
from controller.services.parts import Context, Parts
from controller.webhooks import WebhookChange

SECRET_CHARACTERS = range(16, 257)
DELIVERIES_MAX = 1000
_PEM_CHARACTERS_MAX = 64 << 10
_MASK = ("name", "url", "kinds", "ca_certificate", "enabled", "secret")


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateWebhook(
        self, request: messages.CreateWebhookRequest, context: Context
    ) -> messages.CreateWebhookResponse:
        new = WebhookChange(
            name=check.name("name", request.name),
            url=self._url(request.url),
            kinds=check.kinds("kinds", request.kinds),
            ca_certificate=await _certificate("ca_certificate", request.ca_certificate),
            enabled=not request.disabled,
            secret=_secret(request.secret),
        )
        record = await self._parts.database.run(webhooks.create, new, self._parts.vault, self._parts.now())
        return messages.CreateWebhookResponse(webhook=convert_events.webhook(record))

    async def ListWebhooks(
        self, request: messages.ListWebhooksRequest, context: Context
    ) -> messages.ListWebhooksResponse:
        page = paging.page("webhooks", (), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(webhooks.list_webhooks, after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_events.webhook, lambda row: (row.name,))
        return messages.ListWebhooksResponse(webhooks=filled.messages, next_page_token=filled.next_page_token)

    async def GetWebhook(self, request: messages.GetWebhookRequest, context: Context) -> messages.GetWebhookResponse:
        reference = check.reference("webhook_id", request.webhook_id)
        record = await self._parts.database.run(webhooks.find, reference)
        return messages.GetWebhookResponse(webhook=convert_events.webhook(record))

    async def UpdateWebhook(
        self, request: messages.UpdateWebhookRequest, context: Context
    ) -> messages.UpdateWebhookResponse:
        given, drop = request.webhook, request.drop_previous_secret
        wanted = check.mask(request.update_mask, _MASK) if request.update_mask.paths or not drop else frozenset()
        reference = check.reference("webhook.webhook_id", given.webhook_id)
        change = WebhookChange(
            name=check.name("webhook.name", given.name) if "name" in wanted else None,
            url=self._url(given.url) if "url" in wanted else None,
            kinds=check.kinds("webhook.kinds", given.kinds) if "kinds" in wanted else None,
            ca_certificate=await _certificate("webhook.ca_certificate", given.ca_certificate)
            if "ca_certificate" in wanted
            else None,
            enabled=given.enabled if "enabled" in wanted else None,
            secret=_secret(request.secret) if "secret" in wanted else None,
            drop_previous_secret=drop,
        )
        record = await self._parts.database.run(
            webhooks.update, reference, change, given.etag, self._parts.vault, self._parts.now()
        )
        return messages.UpdateWebhookResponse(webhook=convert_events.webhook(record))

    async def DeleteWebhook(
        self, request: messages.DeleteWebhookRequest, context: Context
    ) -> messages.DeleteWebhookResponse:
        reference = check.reference("webhook_id", request.webhook_id)
        await self._parts.database.run(webhooks.delete, reference, self._parts.now())
        return messages.DeleteWebhookResponse()

    async def TestWebhook(self, request: messages.TestWebhookRequest, context: Context) -> messages.TestWebhookResponse:
        status, failure, took = await self._parts.courier.test(check.reference("webhook_id", request.webhook_id))
        duration = Duration()
        duration.FromTimedelta(took)
        return messages.TestWebhookResponse(
            delivered=not failure, http_status=status, failure=failure, duration=duration
        )

    async def ListWebhookDeliveries(
        self, request: messages.ListWebhookDeliveriesRequest, context: Context
    ) -> messages.ListWebhookDeliveriesResponse:
        reference = check.reference("webhook_id", request.webhook_id)
        words = {convert.enum_word(webhook_pb2.WebhookDeliveryState.DESCRIPTOR, one) for one in request.states}
        states = tuple(sorted(words - {""}))
        page = paging.page("deliveries", (reference, states), request.page_size, request.page_token, (int,))
        rows = await self._parts.database.run(_list, reference, states, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_events.webhook_delivery, lambda row: (row.sequence,))
        return messages.ListWebhookDeliveriesResponse(
            deliveries=filled.messages, next_page_token=filled.next_page_token
        )

    async def ResendWebhookDeliveries(
        self, request: messages.ResendWebhookDeliveriesRequest, context: Context
    ) -> messages.ResendWebhookDeliveriesResponse:
        reference = check.reference("webhook_id", request.webhook_id)
        ids = request.delivery_ids
        chosen = check.identifiers("delivery_ids", ids, DELIVERIES_MAX) if ids else ()
        count = await self._parts.database.run(deliveries.resend, reference, chosen, self._parts.now())
        return messages.ResendWebhookDeliveriesResponse(resent_count=count)

    def _url(self, url: str) -> str:
        targets.check(url, self._parts.webhook_networks)
        return url


def _list(reference: str, states: tuple[str, ...], after: tuple[int] | None, limit: int) -> list[Delivery]:
    webhook_id = webhooks.find(reference).webhook_id
    return deliveries.list_deliveries(webhook_id, states, after=after, limit=limit)


def _secret(secret: str) -> str:
    if len(secret) not in SECRET_CHARACTERS:
        least, most = SECRET_CHARACTERS.start, SECRET_CHARACTERS.stop - 1
        raise InvalidField(field="secret", problem=f"must have {least} to {most} characters")
    return secret


async def _certificate(field: str, pem: str) -> str:
    """Check certificates that a receiver's is to be signed by."""
    if not pem:
        return ""
    if len(pem) > _PEM_CHARACTERS_MAX:
        raise InvalidField(field=field, problem=f"is longer than {_PEM_CHARACTERS_MAX} characters")
    try:
        await asyncio.to_thread(ssl.create_default_context, cadata=pem)
    except (ssl.SSLError, ValueError):
        raise InvalidField(field=field, problem="is no certificate in PEM") from None
    return pem
