"""Access tokens: who may call, for how long, and how they are known again.

A secret is `bmt_` and 43 characters of base64url (256 random bits), shown once; the table has its SHA-256. So wide a secret
needs no slow hash: nobody guesses it, and a stolen table gives nothing to call with. All functions run on the database's
thread.
"""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from controller import happenings, servers
from controller.db import models
from controller.db.statements import find_row
from controller.errors import AccessTokenNotFound, InvalidField, Unauthenticated
from controller.security.caller import Caller
from controller.security.permissions import Scope
from engine import ids

SECRET_PREFIX = "bmt_"  # noqa: S105 - what every secret begins with, so that a leaked one is found by a search
SECRET_CHARACTERS = len(SECRET_PREFIX) + 43
SERVERS_MAX = 1000
PORTAL_KEPT = timedelta(days=7)  # after its end, so that its last use can be looked up
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token without its secret."""

    access_token_id: str
    name: str
    scope: Scope
    server_ids: tuple[str, ...]
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None
    last_use_time: datetime | None


@dataclass(frozen=True, slots=True)
class NewAccessToken:
    """A token with its secret, which nobody can ask for again."""

    token: AccessToken
    secret: str = field(repr=False)


def create(
    name: str, scope: Scope, lifetime: timedelta | None, server_references: Sequence[str], creator: str, now: datetime
) -> NewAccessToken:
    """Make a token. Raises InvalidField when the name is another's or the scope and the servers do not fit, ServerNotFound."""
    if scope == "portal" and (not server_references or lifetime is None):
        field_name = "server_ids" if not server_references else "lifetime"
        raise InvalidField(field=field_name, problem="is needed for scope portal")
    if scope != "portal" and server_references:
        raise InvalidField(field="server_ids", problem="is for scope portal only")
    if (
        models.AccessToken.select()
        .where(models.AccessToken.name == name, models.AccessToken.revoke_time.is_null())
        .exists()
    ):
        raise InvalidField(field="name", problem="is the name of another access token")
    chosen = {servers.find(one).server_id for one in server_references}
    return _insert(ids.new_id(now), name, scope, chosen, lifetime, creator, now)


def create_portal(
    server_references: Sequence[str], owner: str, lifetime: timedelta, creator: str, now: datetime
) -> NewAccessToken:
    """Make a token for one customer's servers, each given by its id or external id.

    Raises ServerNotFound, InvalidField when they are of more than one owner, or not of the `owner` that was named.
    """
    chosen = [servers.find_exact(one) for one in server_references]
    if any(one.state == "deleted" for one in chosen):
        raise InvalidField(field="server_ids", problem="names a deleted server")
    owners = {one.owner for one in chosen}
    if owner and owners != {owner}:
        raise InvalidField(field="server_ids", problem="names a server that is not this owner's")
    if len(owners) > 1:
        raise InvalidField(field="server_ids", problem="names servers of more than one owner")
    token_id = ids.new_id(now)
    return _insert(token_id, f"portal-{token_id}", "portal", {one.server_id for one in chosen}, lifetime, creator, now)


def forget_expired(now: datetime) -> int:
    """Drop portal tokens that ended a while ago: a panel makes one for every visit. Returns how many."""
    table = models.AccessToken
    old = (table.scope == "portal") & (table.expire_time < now - PORTAL_KEPT)
    return int(table.delete().where(old).execute())


def list_tokens(*, after: tuple[str, str] | None = None, limit: int = 101) -> list[AccessToken]:
    """Return tokens by name, revoked ones too; the sort key is (name, access_token_id)."""
    table = models.AccessToken
    query = table.select().order_by(table.name, table.access_token_id).limit(limit)
    if after is not None:
        name, token_id = after
        query = query.where((table.name > name) | ((table.name == name) & (table.access_token_id > token_id)))
    return [_record(row) for row in query]


def revoke(access_token_id: str, now: datetime) -> AccessToken:
    """End a token at once; one that is revoked stays as it is. Raises AccessTokenNotFound."""
    table = models.AccessToken
    live = (table.access_token_id == access_token_id) & table.revoke_time.is_null()
    if table.update(revoke_time=now).where(live).execute():
        happenings.record("token.revoked", now, body={"access_token_id": access_token_id})
    row = find_row(table.access_token_id, access_token_id)
    if row is None:
        raise AccessTokenNotFound(access_token_id=access_token_id)
    return _record(row)


def authenticate(secret: str, now: datetime) -> Caller:
    """Return who a secret belongs to, and remember the minute. Raises Unauthenticated, the same for every cause."""
    if len(secret) != SECRET_CHARACTERS:
        raise _refused()
    row = find_row(models.AccessToken.secret_hash, _hash(secret))
    if row is None or not _works(row, now):
        raise _refused()
    minute = now.replace(second=0, microsecond=0)
    if row.last_use_time is None or row.last_use_time < minute:
        table = models.AccessToken
        table.update(last_use_time=minute).where(table.access_token_id == row.access_token_id).execute()
    scope = cast("Scope", row.scope)
    return Caller(row.name, scope, row.access_token_id, tuple(row.server_ids), token_time=row.create_time)


def check_works(access_token_id: str, now: datetime) -> None:
    """Raise Unauthenticated if a token, seen before, no longer works: a stream outlives the look at its beginning."""
    row = find_row(models.AccessToken.access_token_id, access_token_id)
    if row is None or not _works(row, now):
        raise _refused()


def _insert(
    token_id: str,
    name: str,
    scope: Scope,
    server_ids: Collection[str],
    lifetime: timedelta | None,
    creator: str,
    now: datetime,
) -> NewAccessToken:
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    row = models.AccessToken.create(
        access_token_id=token_id,
        name=name,
        scope=scope,
        secret_hash=_hash(secret),
        server_ids=sorted(server_ids),
        create_time=now,
        expire_time=None if lifetime is None else now + lifetime,
        creator=creator,
    )
    happenings.record("token.created", now, body={"access_token_id": token_id, "name": name, "scope": scope})
    return NewAccessToken(_record(row), secret)


def _works(row: models.AccessToken, now: datetime) -> bool:
    return row.revoke_time is None and (row.expire_time is None or now < row.expire_time)


def _refused() -> Unauthenticated:
    return Unauthenticated(problem="the access token is missing, unknown, expired or revoked")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _record(row: models.AccessToken) -> AccessToken:
    return AccessToken(
        row.access_token_id,
        row.name,
        cast("Scope", row.scope),
        tuple(row.server_ids),
        row.create_time,
        row.expire_time,
        row.revoke_time,
        row.last_use_time,
    )
