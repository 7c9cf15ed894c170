"""`bmctl webhook …`: having events sent by HTTP."""

import secrets
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import ask, words
from clients.cli.options import Limit, Output, Yes, group
from clients.cli.output import Column, Screen, card, heading, plain, state, state_of
from clients.cli.session import Controller, run
from clients.errors import ClientError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.webhook_pb2 import Webhook

app = group()

_VARIABLE = "BMCTL_WEBHOOK_SECRET"
Hook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id or name.")]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", help="Only this kind, such as job.failed, or job. for all; repeatable.")
]
SecretFile = Annotated[str, typer.Option("--secret-file", help=f"File with the signing secret; or {_VARIABLE}.")]
CaFile = Annotated[str, typer.Option("--ca", help="File with the certificates (PEM) to trust instead of the host's.")]


class NotDelivered(ClientError):
    reason = "WEBHOOK_FAILED"
    template = "the receiver did not take the test: {failure}"


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new webhook.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to: https or http.")],
    kind: Kinds = None,
    secret_file: SecretFile = "",
    ca: CaFile = "",
    disabled: Annotated[bool, typer.Option("--disabled", help="Make it switched off.")] = False,
    output: Output = "table",
) -> None:
    """Have what happens from now on sent to a URL, signed.

    Without a secret given one is made up and printed, this once.
    """
    from clients.gen.backupmanager.v1.webhook_service_pb2 import CreateWebhookRequest

    given = ask.given_secret(option="--secret-file", file=secret_file, variable=_VARIABLE)
    request = CreateWebhookRequest(
        name=name, url=url, kinds=kind or (), secret=given or secrets.token_urlsafe(32), disabled=disabled
    )
    if ca:
        request.ca_certificate = ask.read_file(ca, option="--ca")

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.webhooks.CreateWebhook, request)
        made = {"secret": request.secret} if not given else {}
        screen.show({**plain(reply), **made}, lambda: request.secret if made else _card(screen, reply.webhook))
        if made:
            screen.note(f"Webhook {name}. The receiver checks signatures with this secret; it is not shown again.")
        screen.note(f"Try it with `bmctl webhook test {name}`.")

    run(work)


@app.command("list")
def list_webhooks(output: Output = "table") -> None:
    """List webhooks."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import ListWebhooksRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.webhooks.ListWebhooks, ListWebhooksRequest(), "webhooks")
        screen.show_list(reply, "webhooks", _columns(screen), empty="No webhooks.")

    run(work)


@app.command()
def show(webhook: Hook, output: Output = "table") -> None:
    """Show a webhook and how its deliveries go."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import GetWebhookRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.webhooks.GetWebhook, GetWebhookRequest(webhook_id=webhook))
        screen.show(reply, lambda: _card(screen, reply.webhook))

    run(work)


@app.command()
def update(
    webhook: Hook,
    name: Annotated[str, typer.Option("--name", help="A new name.")] = "",
    url: Annotated[str, typer.Option("--url", help="A new URL.")] = "",
    kind: Kinds = None,
    all_kinds: Annotated[bool, typer.Option("--all-kinds", help="Send everything.")] = False,
    secret_file: SecretFile = "",
    ca: CaFile = "",
    drop: Annotated[
        bool,
        typer.Option("--drop-old", help="Sign with the new secret alone at once, such as when the old one leaked."),
    ] = False,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Switch it on or off.")] = None,
    output: Output = "table",
) -> None:
    """Change a webhook. A secret that is replaced signs beside the new one for 24 hours."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import UpdateWebhookRequest

    request = UpdateWebhookRequest(
        secret=ask.given_secret(option="--secret-file", file=secret_file, variable=_VARIABLE), drop_previous_secret=drop
    )
    target, mask = request.webhook, request.update_mask.paths
    target.webhook_id = webhook
    values: dict[str, Any] = {
        "name": name,
        "url": url,
        "ca_certificate": ask.read_file(ca, option="--ca") if ca else "",
    }
    for field, value in values.items():
        if value:
            setattr(target, field, value)
            mask.append(field)
    if kind or all_kinds:
        target.kinds.extend(kind or ())
        mask.append("kinds")
    if enable is not None:
        target.enabled = enable
        mask.append("enabled")
    if request.secret:
        mask.append("secret")

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.webhooks.UpdateWebhook, request)
        screen.show(reply, lambda: _card(screen, reply.webhook))

    run(work)


@app.command()
def delete(webhook: Hook, yes: Yes = False, output: Output = "table") -> None:
    """Delete a webhook, with all that is on its way."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import DeleteWebhookRequest, GetWebhookRequest

    async def work(controller: Controller) -> None:
        found = await controller.call(controller.webhooks.GetWebhook, GetWebhookRequest(webhook_id=webhook))
        hook = found.webhook
        left = hook.waiting_count + hook.dead_count
        ask.confirm(f"Delete webhook {hook.name}, with {words.plural(left, 'unsent event')}?", yes=yes)
        request = DeleteWebhookRequest(webhook_id=hook.webhook_id)
        await controller.call(controller.webhooks.DeleteWebhook, request)
        Screen(output).show({}, lambda: f"Webhook {hook.name} is deleted.")

    run(work)


@app.command("test")
def send_test(webhook: Hook, output: Output = "table") -> None:
    """Send a test event now, and say how that went."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import TestWebhookRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.webhooks.TestWebhook, TestWebhookRequest(webhook_id=webhook))
        took = words.span(words.seconds_of(reply.duration))
        said = f"The receiver answered {reply.http_status} after {took}."
        screen.show(reply, lambda: said if reply.delivered else None)
        if not reply.delivered:
            raise NotDelivered(failure=reply.failure)

    run(work)


@app.command()
def deliveries(
    webhook: Hook,
    dead: Annotated[bool, typer.Option("--dead", help="Only those that were given up.")] = False,
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List events that have not arrived, newest first."""
    from clients.gen.backupmanager.v1.webhook_pb2 import WebhookDeliveryState
    from clients.gen.backupmanager.v1.webhook_service_pb2 import ListWebhookDeliveriesRequest

    states = [WebhookDeliveryState.WEBHOOK_DELIVERY_STATE_DEAD] if dead else []
    request = ListWebhookDeliveriesRequest(webhook_id=webhook, states=states)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        stub = controller.webhooks.ListWebhookDeliveries
        reply, more = await controller.every(stub, request, "deliveries", limit)
        screen.show_list(reply, "deliveries", _delivery_columns(screen), empty="Everything has arrived.")
        if more:
            screen.note(f"There are more; these are the newest {limit}. --limit 0 shows all.")

    run(work)


@app.command()
def resend(
    webhook: Hook,
    delivery: Annotated[
        list[str] | None, typer.Option("--delivery", help="Only this one: id; repeatable. All dead ones if not given.")
    ] = None,
    output: Output = "table",
) -> None:
    """Send dead deliveries again."""
    from clients.gen.backupmanager.v1.webhook_service_pb2 import ResendWebhookDeliveriesRequest

    request = ResendWebhookDeliveriesRequest(webhook_id=webhook, delivery_ids=delivery or ())

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.webhooks.ResendWebhookDeliveries, request)
        Screen(output).show(reply, lambda: f"{words.plural(reply.resent_count, 'event')} will be sent again.")

    run(work)


def _columns(screen: Screen) -> tuple[Column, ...]:
    return (
        Column("Name", lambda one: one.name),
        Column("State", _state),
        Column("URL", lambda one: one.url),
        Column("Arrived", lambda one: str(one.delivered_count), right=True, rank=1),
        Column("Waiting", lambda one: str(one.waiting_count), right=True),
        Column("Dead", lambda one: str(one.dead_count), right=True),
        Column("Kinds", lambda one: ", ".join(one.kinds) or "all", rank=3),
        Column("Last arrived", lambda one: words.short_time(words.set_time(one, "success_time"), screen.now), rank=2),
    )


def _delivery_columns(screen: Screen) -> tuple[Column, ...]:
    return (
        Column("Delivery", lambda one: one.delivery_id, whole=True),
        Column("Event", lambda one: str(one.sequence), right=True, rank=1),
        Column("Kind", lambda one: one.kind),
        Column("State", state_of),
        Column("Tried", lambda one: str(one.attempts), right=True),
        Column("Next", lambda one: words.short_time(words.set_time(one, "due_time"), screen.now), rank=2),
        Column("Why", lambda one: one.failure or "-"),
    )


def _state(webhook: "Webhook") -> "Text":
    if not webhook.enabled:
        return state("disabled")
    newest = max(webhook.success_time.ToNanoseconds(), 0)
    failing = webhook.HasField("failure_time") and webhook.failure_time.ToNanoseconds() > newest
    return state("failing" if failing else "enabled")


def _card(screen: Screen, webhook: "Webhook") -> "RenderableType":
    return card(
        heading(webhook.name, _state(webhook)),
        [
            ("Webhook", webhook.webhook_id),
            ("URL", webhook.url),
            ("Kinds", ", ".join(webhook.kinds) or "all"),
            ("Secret", f"set, fingerprint {webhook.secret_fingerprint}"),
            *_if_set("Old secret", "signs too until", webhook, "previous_secret_expire_time", screen),
            ("Trusts", "certificates of its own" if webhook.ca_certificate else "what the controller's host trusts"),
            ("Arrived", str(webhook.delivered_count)),
            ("Waiting", str(webhook.waiting_count)),
            ("Dead", str(webhook.dead_count)),
            ("Missed", str(webhook.missed_count) if webhook.missed_count else "-"),
            ("Last arrived", words.long_time(words.set_time(webhook, "success_time"), screen.now)),
            ("Last failed", words.long_time(words.set_time(webhook, "failure_time"), screen.now)),
            ("Because", webhook.failure or "-"),
            *_if_set("Held back", "as its receiver asked, until", webhook, "hold_time", screen),
        ],
    )


def _if_set(name: str, text: str, webhook: "Webhook", field: str, screen: Screen) -> list[tuple[str, str]]:
    """Return a line of the card for a time to come, none for one that is past or not set."""
    stamp = words.set_time(webhook, field)
    due = stamp is not None and stamp.ToDatetime(tzinfo=UTC) > screen.now
    return [(name, f"{text} {words.long_time(stamp, screen.now)}")] if due else []
