"""Access tokens: who may call."""

from datetime import timedelta
from typing import TYPE_CHECKING, cast

from clients.gen.backupmanager.v1 import access_token_pb2, access_token_service_pb2_grpc
from clients.gen.backupmanager.v1 import access_token_service_pb2 as messages
from controller.errors import InvalidField
from controller.security import tokens
from controller.security.caller import current_caller
from controller.services import check, convert, convert_access, paging
from controller.services.parts import Context, Parts

if TYPE_CHECKING:
    from controller.security.permissions import Scope

_LIFETIME_MIN = timedelta(seconds=1)
_LIFETIME_MAX = timedelta(days=3653)
_PORTAL_LIFETIME, _PORTAL_LIFETIME_MAX = timedelta(hours=1), timedelta(days=7)


class AccessTokenServicer(access_token_service_pb2_grpc.AccessTokenServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateAccessToken(
        self, request: messages.CreateAccessTokenRequest, context: Context
    ) -> messages.CreateAccessTokenResponse:
        scope = convert.enum_word(access_token_pb2.AccessScope.DESCRIPTOR, request.scope)
        if not scope:
            raise InvalidField(field="scope", problem="is missing")
        made = await self._parts.database.run(
            tokens.create,
            check.name("name", request.name),
            cast("Scope", scope),
            check.span(request, "lifetime", None, _LIFETIME_MIN, _LIFETIME_MAX),
            [check.reference("server_ids", one) for one in request.server_ids],
            current_caller().name,
            self._parts.now(),
        )
        return messages.CreateAccessTokenResponse(
            access_token=convert_access.access_token(made.token), secret=made.secret
        )

    async def CreatePortalToken(
        self, request: messages.CreatePortalTokenRequest, context: Context
    ) -> messages.CreatePortalTokenResponse:
        references = [check.reference("server_ids", one) for one in request.server_ids]
        if not 1 <= len(references) <= tokens.SERVERS_MAX:
            raise InvalidField(field="server_ids", problem=f"must have 1 to {tokens.SERVERS_MAX} entries")
        lifetime = check.span(request, "lifetime", _PORTAL_LIFETIME, _LIFETIME_MIN, _PORTAL_LIFETIME_MAX)
        made = await self._parts.database.run(
            tokens.create_portal,
            references,
            check.title("owner", request.owner),
            lifetime or _PORTAL_LIFETIME,
            current_caller().name,
            self._parts.now(),
        )
        return messages.CreatePortalTokenResponse(
            access_token=convert_access.access_token(made.token), secret=made.secret
        )

    async def ListAccessTokens(
        self, request: messages.ListAccessTokensRequest, context: Context
    ) -> messages.ListAccessTokensResponse:
        page = paging.page("access tokens", (), request.page_size, request.page_token, (str, str))
        rows = await self._parts.database.run(tokens.list_tokens, after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_access.access_token, lambda row: (row.name, row.access_token_id))
        return messages.ListAccessTokensResponse(access_tokens=filled.messages, next_page_token=filled.next_page_token)

    async def RevokeAccessToken(
        self, request: messages.RevokeAccessTokenRequest, context: Context
    ) -> messages.RevokeAccessTokenResponse:
        token_id = check.identifier("access_token_id", request.access_token_id)
        record = await self._parts.database.run(tokens.revoke, token_id, self._parts.now())
        return messages.RevokeAccessTokenResponse(access_token=convert_access.access_token(record))
