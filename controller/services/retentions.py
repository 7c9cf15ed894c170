"""Retention: why backups stay, which go soon, and what another policy would keep."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from clients.gen.backupmanager.v1 import retention_pb2, retention_service_pb2_grpc
from clients.gen.backupmanager.v1 import retention_service_pb2 as messages
from controller import retention, retention_trial, servers, settings, storages
from controller.errors import InvalidField
from controller.retention import Expiration
from controller.retention_trial import Trial, Wish
from controller.rules import retention as policies
from controller.rules.zones import find_zone
from controller.services import check, convert, convert_retention, paging
from controller.services.parts import Context, Parts

_DAYS_MAX = 400  # retention looks no further ahead
_SERVERS_MAX = 1000  # of one call: some seconds at the most
_PART = 20  # servers in one turn of the database's thread: a few tens of milliseconds
Place: TypeAlias = tuple[str, str]  # a storage, and the server on it that was looked at last
_HOUR, _LONG = timedelta(hours=1), timedelta(days=3650)


class RetentionServicer(retention_service_pb2_grpc.RetentionServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GetRetentionPresets(
        self, request: messages.GetRetentionPresetsRequest, context: Context
    ) -> messages.GetRetentionPresetsResponse:
        return messages.GetRetentionPresetsResponse(
            presets=[
                retention_pb2.RetentionPreset(
                    name=name, policy=convert.policy({"preset": name}), words=policies.words({"preset": name})
                )
                for name in policies.PRESETS
            ]
        )

    async def GetRetentionVerdict(
        self, request: messages.GetRetentionVerdictRequest, context: Context
    ) -> messages.GetRetentionVerdictResponse:
        backup_id = check.identifier("backup_id", request.backup_id)
        found = await self._parts.database.run(retention.explain, backup_id, self._parts.now())
        sizes = {backup_id: found.stored_bytes}
        return messages.GetRetentionVerdictResponse(
            verdict=convert_retention.verdict(found.verdict, found.server_id, found.storage_id, sizes),
            applied=convert_retention.applied(found.applied),
        )

    async def PreviewRetention(
        self, request: messages.PreviewRetentionRequest, context: Context
    ) -> messages.PreviewRetentionResponse:
        now = self._parts.now()
        filters = (request.server_id, request.storage_id, request.imagined, request.policy, request.keep_last)
        page = paging.page("simulation", filters, request.page_size, request.page_token, (int,))
        trial = await self._trial(request, now)
        found = await asyncio.to_thread(retention_trial.verdicts, trial, now)
        first = page.after[0] if page.after else 0
        if first < 0:
            raise InvalidField(field="page_token", problem="is none of this list")
        server_id = trial.history.server_id
        filled = paging.fill(
            page,
            list(enumerate(found[first : first + page.size + 1], first + 1)),
            lambda row: convert_retention.verdict(row[1], server_id, trial.storage_id, trial.stored_bytes),
            lambda row: (row[0],),
        )
        going = [one for one in found if not one.kept]
        return messages.PreviewRetentionResponse(
            verdicts=filled.messages,
            next_page_token=filled.next_page_token,
            applied=convert_retention.applied(trial.applied),
            kept_count=len(found) - len(going),
            going_count=len(going),
            going_bytes=sum(trial.stored_bytes.get(one.backup_id, 0) for one in going),
            kept_chain_count=retention_trial.kept_chains(trial, found),
        )

    async def ListExpirations(
        self, request: messages.ListExpirationsRequest, context: Context
    ) -> messages.ListExpirationsResponse:
        now, run = self._parts.now(), self._parts.database.run
        days = check.number("days", request.days, 0, _DAYS_MAX)
        storage = check.reference("storage_id", request.storage_id, optional=True)
        server = check.reference("server_id", request.server_id, optional=True)
        page = paging.page("expirations", (days, storage, server), request.page_size, request.page_token, (str, str))
        days = days or (await run(settings.get)).warning_window_days
        wanted = await run(_wanted, storage, server)
        found, reached = await expirations_from(run, wanted, page.after or ("", ""), page.size, days, now)
        shown = [convert_retention.expiration(one) for one in sorted(found, key=lambda one: one.expire_time)]
        token = page.token(reached) if reached is not None else ""
        return messages.ListExpirationsResponse(expirations=shown, next_page_token=token)

    async def _trial(self, request: messages.PreviewRetentionRequest, now: datetime) -> Trial:
        if request.time_zone:
            find_zone("time_zone", request.time_zone)
        wish = Wish(
            policy=convert.policy_json(request.policy, "policy") if request.HasField("policy") else None,
            keep_last=policies.checked_keep_last(request.keep_last) if request.HasField("keep_last") else None,
            time_zone=request.time_zone,
        )
        if not request.HasField("imagined"):
            server = check.reference("server_id", request.server_id)
            storage = check.reference("storage_id", request.storage_id)
            return await self._parts.database.run(retention_trial.of_server, server, storage, wish)
        if request.server_id or request.storage_id:
            raise InvalidField(field="imagined", problem="stands instead of a server and a storage")
        asked = request.imagined
        interval = check.span(asked, "interval", timedelta(days=1), _HOUR, _LONG) or timedelta(days=1)
        full_days = check.number("imagined.full_interval_days", asked.full_interval_days, 0, 3650)
        span = check.number("imagined.days", asked.days, 1, retention_trial.DAYS_MAX)
        return retention_trial.of_imagined(interval, full_days, span, wish, now)


async def expirations_from(
    run: Callable[..., Awaitable[Any]], wanted: tuple[list[str], str], begin: Place, size: int, days: int, now: datetime
) -> tuple[list[Expiration], Place | None]:
    """Return what goes soon from a storage and the server before, some more than `size` of them, and where the next page begins.

    None for nowhere: all is said. Each part is a turn of its own of the database's thread.
    """
    found: list[Expiration] = []
    seen = 0
    for storage_id in (one for one in wanted[0] if one >= begin[0]):
        after = begin[1] if storage_id == begin[0] else ""
        while True:
            if len(found) >= size or seen >= _SERVERS_MAX:
                return found, (storage_id, after)
            part, after = await run(_part, storage_id, after, wanted[1], days, now)
            found, seen = found + part, seen + _PART
            if not after:
                break
    return found, None


def _wanted(storage: str, server: str) -> tuple[list[str], str]:
    """Return the storages to look at, by id, and the id of the only server, "" for all."""
    chosen = [storages.find(storage)] if storage else storages.list_storages(limit=100_000)
    return sorted(one.storage_id for one in chosen), servers.find(server).server_id if server else ""


def _part(storage_id: str, after: str, server_id: str, days: int, now: datetime) -> tuple[list[Expiration], str]:
    """Return what goes soon of the next servers on a storage, and the last of these, "" at the end."""
    if server_id:
        return retention.expirations(now, days, storage_id=storage_id, server_ids=[server_id]), ""
    chosen = retention.servers_on(storage_id, after=after, limit=_PART)
    if not chosen:
        return [], ""
    return retention.expirations(now, days, storage_id=storage_id, server_ids=chosen), chosen[-1]
