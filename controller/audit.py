"""Who did what to which resource, for every call that changes something (N5).

A row is written before the call is worked on and closed with its outcome after: an empty outcome says that the controller
ended in between, and that the change may have happened. What is kept is method, caller, resource and reason, so that no
secret of a request can get here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from controller.clock import Clock
from controller.db import models
from controller.db.database import Database
from controller.db.statements import insert_rows, statement
from controller.errors import HypervisorBanned
from controller.security.caller import current_caller
from controller.security.permissions import Rule
from engine.errors import BackupManagerError

OK = "OK"
FAULT = "INTERNAL"
GONE = "CANCELLED"  # the caller went away; what was begun may have happened
RESOURCE_CHARACTERS_MAX = 512
_PROVEN = {HypervisorBanned.reason}  # how an enrollment fails whose token was good


class Audit:
    """Keeps the record. `call` surrounds a call; `refused` notes one that was not let in."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @asynccontextmanager
    async def call(
        self, method: str, rule: Rule, request: Any, peer: str, response: Callable[[], Any]
    ) -> AsyncIterator[None]:
        """Keep a record of the block if its method changes something. `response` is asked after the block has ended well."""
        if not rule.audited:
            yield
            return
        if rule.demand == "open":
            async with self._call_of_anybody(method, rule, request, peer, response):
                yield
            return
        sequence = await self._begin(method, rule, request, peer, "")
        outcome, made = FAULT, ""
        try:
            yield
            outcome, made = OK, _text(response(), rule.made)
        except BackupManagerError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:
            outcome = GONE
            raise
        finally:
            await self._database.run(_end, sequence, outcome, made)

    @asynccontextmanager
    async def _call_of_anybody(
        self, method: str, rule: Rule, request: Any, peer: str, response: Callable[[], Any]
    ) -> AsyncIterator[None]:
        """As `call`, for a method without a credential of ours: a row only once its one-time secret was found to be good.

        Else anybody who reaches the port could fill the disk.
        """
        try:
            yield
        except BackupManagerError as error:
            if error.reason in _PROVEN:
                await self._begin(method, rule, request, peer, error.reason)
            raise
        sequence = await self._begin(method, rule, request, peer, OK)
        await self._database.run(_end, sequence, OK, _text(response(), rule.made))

    async def refused(self, method: str, rule: Rule, request: Any, peer: str, reason: str) -> None:
        """Note a call that its caller may not make."""
        if rule.audited:
            await self._begin(method, rule, request, peer, reason)

    async def _begin(self, method: str, rule: Rule, request: Any, peer: str, outcome: str) -> int:
        caller = current_caller()
        resource = _text(request, rule.resource)
        return await self._database.run(
            _insert, self._clock.now(), caller.access_token_id, caller.name, method, resource, outcome, peer
        )


def _insert(time: datetime, token_id: str, token_name: str, method: str, resource: str, outcome: str, peer: str) -> int:
    row = {
        "time": time,
        "token_id": token_id,
        "token_name": token_name,
        "method": method,
        "resource": resource,
        "outcome": outcome,
        "peer": peer,
        "detail": {},
    }
    return int(insert_rows(models.Audit, [row], "RETURNING sequence")[0][0])


def _end(sequence: int, outcome: str, made: str) -> None:
    detail = models.Audit.detail.db_value({"made": made} if made else {})
    statement("UPDATE audit SET outcome = ?, detail = ? WHERE sequence = ?", outcome, detail, sequence)


def _text(message: Any, path: str) -> str:
    """Return the text of a field deep in a message, "" where there is none; several are joined by commas."""
    if message is None or not path:
        return ""
    for name in path.split("."):
        message = getattr(message, name, "")
    text = message if isinstance(message, str) else ",".join(map(str, message))
    return "".join(one for one in text[:RESOURCE_CHARACTERS_MAX] if one.isprintable())
