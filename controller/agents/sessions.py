"""Live sessions: which hypervisors are connected to this controller, and how a session is begun, ended and replaced.

    serve ──► certificate good? ──► Session.run ──► its generator ends, or raises what the stream is to end with
A session's stream ends only by its own generator: cancelling a handler would leave the agent without a status for ever.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from clients.gen.backupmanager.agent.v1 import session_service_pb2
from controller.agents import enrollment, session
from controller.agents.ownership import Ownership
from controller.agents.pulse import Pulse
from controller.agents.session import Parts, Session
from controller.changes import Changes
from controller.clock import Clock
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import ControllerError, ShuttingDown, StaleGeneration
from controller.installation import Installation
from controller.limits import Limits

log = logging.getLogger(__name__)


class Sessions:
    """All sessions of this controller. On the event loop."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        clock: Clock,
        limits: Limits,
        changes: Changes,
        installation: Installation,
        ownership: Ownership,
        controller_version: str,
    ) -> None:
        pulse = Pulse(database)
        self._parts = Parts(database, vault, clock, limits, changes, installation, ownership, controller_version, pulse)
        self._watch: asyncio.Task[None] | None = None
        self._all: set[Session] = set()
        self._live: dict[str, Session] = {}
        self._stopping = False
        self._gone = asyncio.Event()

    def connected(self) -> frozenset[str]:
        """Return the hypervisors that are connected here and were welcomed."""
        return frozenset(self._live)

    async def serve(
        self,
        hypervisor_id: str,
        certificate_serial: str,
        requests: AsyncIterator[session_service_pb2.SessionRequest],
    ) -> AsyncGenerator[session_service_pb2.SessionResponse, None]:
        """Serve a stream of a verified client certificate, until the agent goes or somebody ends it.

        Raises, when the stream is to end with a status: PermissionDenied, Unauthenticated, Unsupported, InvalidField,
        StaleGeneration (a newer session took over), HypervisorUnreachable (it fell silent), ShuttingDown.
        """
        if self._stopping:
            raise ShuttingDown
        await self._parts.database.run(enrollment.admit, hypervisor_id, certificate_serial)
        one = Session(hypervisor_id, self._parts, self._welcomed)
        self._all.add(one)
        if self._watch is None:
            self._watch = asyncio.create_task(self._look(), name="sessions")
        try:
            if self._stopping:
                raise ShuttingDown
            async with aclosing(one.run(requests)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._all.discard(one)
            if self._live.get(hypervisor_id) is one:
                del self._live[hypervisor_id]
            self._gone.set()
            log.info("session ended hypervisor_id=%s session_id=%s", hypervisor_id, one.session_id)

    def end(self, hypervisor_id: str, error: ControllerError) -> None:
        """End a hypervisor's session, if there is one, with this error."""
        for one in [one for one in self._all if one.hypervisor_id == hypervisor_id]:
            one.end(error)

    async def stop(self, seconds: float = 5) -> None:
        """End all sessions: each answers what it has in hand, writes its last messages, and raises ShuttingDown.

        Returns when all are gone, or after `seconds`; new ones are refused from the beginning on.
        """
        self._stopping = True
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(one.finish(ShuttingDown()) for one in list(self._all)))
                while self._all:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            log.warning("sessions did not end in time count=%d", len(self._all))
        if self._watch is not None:
            self._watch.cancel()
        await self._parts.pulse.stop()

    async def _look(self) -> None:
        """Look after all sessions, for ever: a task and a timer for each would be most of what an idle controller does."""
        silence = self._parts.limits.silence_max.total_seconds()
        while True:
            await asyncio.sleep(min(1.0, silence / 6, session.RESEND_SECONDS))
            for one in list(self._all):
                try:
                    one.look()
                except Exception as error:  # its own fault ends one session, and not the care for the others
                    log.exception("session ended by a fault of ours hypervisor_id=%s", one.hypervisor_id)
                    one.end(error)

    def _welcomed(self, newer: Session) -> None:
        """Make a session the hypervisor's own; an older one ends."""
        older = self._live.get(newer.hypervisor_id)
        self._live[newer.hypervisor_id] = newer
        if older is not None:
            older.end(StaleGeneration(problem="a newer session of this hypervisor has begun", generation=0))
        log.info("session began hypervisor_id=%s session_id=%s", newer.hypervisor_id, newer.session_id)
