"""`bmctl token …`: who may call the controller."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from clients.cli import ask, servers, words
from clients.cli.options import Output, Yes, group, span
from clients.cli.output import Column, Screen, card, heading, plain, state
from clients.cli.session import Controller, run
from clients.errors import ClientError

if TYPE_CHECKING:
    from rich.text import Text

    from clients.gen.backupmanager.v1.access_token_pb2 import AccessToken

Scope: TypeAlias = Literal["admin", "operator", "viewer", "portal"]

app = group()


class AccessTokenNotFound(ClientError):
    reason = "ACCESS_TOKEN_NOT_FOUND"
    template = "no access token {access_token_id}"
    remedy = "`bmctl token list` shows the tokens there are"


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for people and for the audit log.")],
    scope: Annotated[Scope, typer.Option("--scope", help="What it allows; each includes those after it, but portal.")],
    lifetime: Annotated[
        str, typer.Option("--lifetime", help="How long it works, such as 90d; for ever if not given.")
    ] = "",
    server: Annotated[
        list[str] | None, typer.Option("--server", help="For scope portal: a server it is for; repeatable.")
    ] = None,
    output: Output = "table",
) -> None:
    """Make an access token and print its secret.

    This is the only time that the secret is shown.
    """
    from clients.gen.backupmanager.v1.access_token_pb2 import AccessScope
    from clients.gen.backupmanager.v1.access_token_service_pb2 import CreateAccessTokenRequest

    request = CreateAccessTokenRequest(name=name, scope=words.enum_value(AccessScope, "ACCESS_SCOPE_", scope))
    if (wanted := span("--lifetime", lifetime)) is not None:
        request.lifetime.FromTimedelta(wanted)

    async def work(controller: Controller) -> None:
        for one in server or ():
            request.server_ids.append((await servers.find(controller, one)).server_id)
        screen = Screen(output)
        reply = await controller.call(controller.tokens.CreateAccessToken, request)
        screen.show(reply, lambda: reply.secret)
        screen.note(f"Token {name} of scope {scope}. Keep the secret: it is not shown again.")

    run(work)


@app.command()
def portal(
    server: Annotated[list[str], typer.Argument(metavar="SERVER...", help="Servers of one customer.")],
    owner: Annotated[str, typer.Option("--owner", help="Refuse unless the servers are this customer's.")] = "",
    lifetime: Annotated[str, typer.Option("--lifetime", help="How long it works, at most 7d; 1h if not given.")] = "",
    output: Output = "table",
) -> None:
    """Make a token for an end user's visit and print its secret.

    It reaches the end-user service only, and these servers only, as long as they keep their owner.
    """
    from clients.gen.backupmanager.v1.access_token_service_pb2 import CreatePortalTokenRequest

    request = CreatePortalTokenRequest(owner=owner)
    if (wanted := span("--lifetime", lifetime)) is not None:
        request.lifetime.FromTimedelta(wanted)

    async def work(controller: Controller) -> None:
        for one in server:
            request.server_ids.append((await servers.find(controller, one)).server_id)
        screen = Screen(output)
        reply = await controller.call(controller.tokens.CreatePortalToken, request)
        screen.show(reply, lambda: reply.secret)
        end = words.long_time(words.set_time(reply.access_token, "expire_time"), screen.now)
        screen.note(f"A portal token for {words.plural(len(server), 'server')}, until {end}. It is not shown again.")

    run(work)


@app.command("list")
def list_tokens(output: Output = "table") -> None:
    """List access tokens, revoked ones too."""

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        from clients.gen.backupmanager.v1.access_token_service_pb2 import ListAccessTokensRequest

        request = ListAccessTokensRequest()
        reply, _ = await controller.every(controller.tokens.ListAccessTokens, request, "access_tokens")
        screen.show_list(reply, "access_tokens", _columns(screen), empty="No tokens.")

    run(work)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Id or name; never the secret.")],
    yes: Yes = False,
    output: Output = "table",
) -> None:
    """End an access token at once."""
    from clients.gen.backupmanager.v1.access_token_service_pb2 import RevokeAccessTokenRequest

    async def work(controller: Controller) -> None:
        found = await _find(controller, token)
        ask.confirm(f"Revoke token {found.name} ({found.access_token_id})? Whoever uses it is locked out.", yes=yes)
        request = RevokeAccessTokenRequest(access_token_id=found.access_token_id)
        reply = await controller.call(controller.tokens.RevokeAccessToken, request)
        screen, ended = Screen(output), reply.access_token
        screen.show(
            {"access_token": plain(ended)},
            lambda: card(heading(ended.name, _state(ended, screen)), [("Token", ended.access_token_id)]),
        )

    run(work)


async def _find(controller: Controller, token: str) -> "AccessToken":
    """Return a token by id, or the one that works by this name. Raises AccessTokenNotFound."""
    from clients.gen.backupmanager.v1.access_token_service_pb2 import ListAccessTokensRequest

    stub = controller.tokens.ListAccessTokens
    reply, _ = await controller.every(stub, ListAccessTokensRequest(), "access_tokens")
    for one in reply.access_tokens:
        if one.access_token_id == token or (one.name == token and not one.HasField("revoke_time")):
            return one
    shown = "of that text" if token.startswith("bmt_") else token  # somebody gave the secret: do not repeat it
    raise AccessTokenNotFound(access_token_id=shown)


def _columns(screen: Screen) -> tuple[Column, ...]:
    now = screen.now
    return (
        Column("Name", lambda one: one.name),
        Column("Scope", lambda one: words.enum_label(one, "scope")),
        Column("State", lambda one: _state(one, screen)),
        Column("Last used", lambda one: words.short_time(words.set_time(one, "last_use_time"), now)),
        Column("Ends", lambda one: words.short_time(words.set_time(one, "expire_time"), now), rank=1),
        Column("Made", lambda one: words.short_time(words.set_time(one, "create_time"), now), rank=3),
        Column("Token", lambda one: one.access_token_id, rank=2, whole=True),
    )


def _state(token: "AccessToken", screen: Screen) -> "Text":
    if token.HasField("revoke_time"):
        return state("revoked")
    expired = token.HasField("expire_time") and token.expire_time.ToDatetime(tzinfo=screen.now.tzinfo) <= screen.now
    return state("expired" if expired else "active")
