"""One agent's stream, as tasks around one outbound queue.

    requests ──► reader ──► database, in the order of arrival ──► answers ─┐
    outbox changes ──► pump ──► commands ─────────────────────────────────┴─► queue ──► run (a generator) ──► gRPC writes
    sessions.py, every second ──► look ──► ends a session that fell silent or does not read, wakes the pump

The generator is the one writer: concurrent writes on one stream hang grpc.aio. It empties the queue before it ends, so that a
receipt for what was stored still goes out. The reader takes the next message when the last one is stored, and so an agent that
is too quick waits in gRPC's flow control; the queue is bounded for one that does not read. The pump is a task only while there is
something to send: of thousands of sessions few have any.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2, session_service_pb2
from controller import claims, installation, job_log, jobs, tickets
from controller.agents import convert, events, hello, outbox
from controller.agents.deliveries import Taken, take
from controller.agents.hello import Suspect, Welcome
from controller.agents.outbox import Stamp
from controller.agents.outgoing import Outgoing
from controller.agents.ownership import Ownership
from controller.agents.pulse import Pulse, Sign
from controller.changes import Changes
from controller.clock import Clock
from controller.cycle import dispatch
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import ControllerError, HypervisorUnreachable, InvalidField
from controller.hypervisors import Domain
from controller.installation import Installation
from controller.limits import Limits
from engine.units import MIB

log = logging.getLogger(__name__)

Request = session_service_pb2.SessionRequest
Response = session_service_pb2.SessionResponse

HELLO_SECONDS = 30.0
WRITE_SECONDS = 60.0  # a peer whose program hangs still answers pings; its stream would hold some 4 MiB for ever
COMMANDS_SECONDS = (
    30.0  # the outbox is looked at this often even when nothing woke us: another controller may have added to it
)
EVENTS_MAX = 5000
INVENTORY_PARTS_MAX = 1000
INVENTORY_BYTES_MAX = 16 * MIB  # a report is held in memory until all its parts are here
DOMAINS_MAX = 5000
RESEND_SECONDS = 30.0  # an agent whose disk failed gives no receipt, and takes the command when it comes again
_VERDICTS = {
    "keep": session_service_pb2.VERDICT_KEEP,
    "cancel": session_service_pb2.VERDICT_CANCEL,
    "unknown": session_service_pb2.VERDICT_UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What sessions work with."""

    database: Database
    vault: Vault
    clock: Clock
    limits: Limits
    changes: Changes
    installation: Installation
    ownership: Ownership
    controller_version: str
    pulse: Pulse


@dataclass(slots=True)
class _Inventory:
    """A report of which parts are still to come."""

    part_count: int
    bytes: int = 0
    parts: dict[int, list[Domain]] = field(default_factory=dict)


class Session:
    """One stream. `run` it once; `end` and `finish` may be called from other tasks of the loop."""

    def __init__(self, hypervisor_id: str, parts: Parts, on_welcome: "Callable[[Session], None]") -> None:
        loop = asyncio.get_running_loop()
        self.hypervisor_id = hypervisor_id
        self.session_id = ""
        self._parts = parts
        self._on_welcome = on_welcome
        self._queue = Outgoing()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._handling = asyncio.Lock()
        self._greeted = False
        self._settled = False  # what the agent was doing is known; from here on it gets commands
        self._greeting: convert.Greeting | None = None
        self._suspects: tuple[Suspect, ...] = ()
        self._inventory: _Inventory | None = None
        self._inventory_version = 0
        self._heard = loop.time()
        self._write_began: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._sent: dict[str, float] = {}  # command_id -> when
        self._pumping: asyncio.Task[None] | None = None
        self._looked = loop.time()  # for commands, last
        self._news = False  # of commands

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Response, None]:
        """Yield what is to be written, until the session ends; then raise what it ended with, if with anything."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(self._task_done)
        try:
            with self._parts.changes.hear_outbox(self.hypervisor_id, self._wake):
                while (response := await self._queue.get()) is not None:
                    self._write_began = loop.time()
                    yield response
                    self._write_began = None
        finally:
            waiting = [reader, *([self._pumping] if self._pumping else [])]
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            if not self._ended.done():
                self._ended.set_result(None)
        self._ended.result()

    def end(self, error: Exception | None) -> None:
        """End the session, with an error or without; what is queued is still written."""
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # seen, also when nobody is left to raise it to
        self._queue.close()

    async def finish(self, error: ControllerError) -> None:
        """End the session once the message in hand is dealt with and its answer is queued."""
        async with self._handling:
            self.end(error)

    # ---- tasks ----------------------------------------------------------------------------------------------------------

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        loop = asyncio.get_running_loop()
        async for request in requests:
            async with self._handling:
                if self._ended.done():
                    return
                self._heard = loop.time()
                await self._handle(request)
        self.end(None)

    def look(self) -> None:
        """End a session that fell silent or does not read, and look for commands now and then."""
        now = asyncio.get_running_loop().time()
        allowed = self._parts.limits.silence_max.total_seconds() if self._greeted else HELLO_SECONDS
        if now - self._heard > allowed and not self._handling.locked():
            last = self._parts.clock.now() - timedelta(seconds=now - self._heard)
            self.end(HypervisorUnreachable(hypervisor_id=self.hypervisor_id, last_contact_time=last.isoformat()))
        if self._write_began is not None and now - self._write_began > WRITE_SECONDS:
            log.error("session dropped, its agent does not read hypervisor_id=%s", self.hypervisor_id)
            self._drop()
        if now - self._looked >= min(COMMANDS_SECONDS, RESEND_SECONDS):
            self._wake()

    def _wake(self) -> None:
        """Have the pump look for commands."""
        self._news = True
        if self._settled and self._pumping is None and not self._ended.done():
            self._pumping = asyncio.create_task(self._pump())
            self._pumping.add_done_callback(self._pumped)

    def _pumped(self, task: "asyncio.Task[None]") -> None:
        self._pumping = None
        self._task_done(task)
        if self._news and not task.cancelled():
            self._wake()

    async def _pump(self) -> None:
        """Send the hypervisor's commands, and those again that the agent has not confirmed for RESEND_SECONDS."""
        parts, loop = self._parts, asyncio.get_running_loop()
        while self._news:
            self._news, self._looked = False, loop.time()
            self._sent = {one: when for one, when in self._sent.items() if loop.time() - when < RESEND_SECONDS}
            found = await parts.database.run(
                take,
                self.hypervisor_id,
                self.session_id,
                frozenset(self._sent),
                parts.vault,
                parts.limits,
                parts.clock.now(),
            )
            await self._send(found)

    async def _send(self, found: Taken) -> None:
        self._news |= found.more
        for command in found.commands:
            self._sent[command.command_id] = asyncio.get_running_loop().time()
            await self._queue.put(Response(command=command))

    def _drop(self) -> None:
        """Give up a stream that cannot even be told its end; the agent notices by its own clock."""
        if self._task is not None:
            self._task.cancel()

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            self.end(error if isinstance(error, Exception) else RuntimeError("session task failed"))

    # ---- messages -------------------------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> None:
        kind = request.WhichOneof("message")
        if (kind == "hello") == self._greeted:
            raise InvalidField(field="message", problem="Hello is the first message, and comes once")
        match kind:
            case "hello":
                await self._hello(request.hello)
            case "heartbeat":
                self._heartbeat(request.heartbeat)
            case "command_receipt":
                await self._parts.database.run(
                    _receive, self.hypervisor_id, request.command_receipt, self._parts.clock.now()
                )
            case "events":
                await self._events(request.events)
            case "progress":
                await self._progress(request.progress)
            case "logs":
                now = self._parts.clock.now()
                lines = [convert.log_line(line, now) for line in request.logs.lines]
                await self._parts.database.run(job_log.append, self.hypervisor_id, lines)
            case "inventory":
                await self._take_inventory(request.inventory)
            case "lease_check":
                await self._lease_check(request.lease_check)
            case _:
                log.warning("message of an unknown kind passed over hypervisor_id=%s", self.hypervisor_id)

    async def _hello(self, message: session_service_pb2.Hello) -> None:
        parts = self._parts
        greeting = convert.greeting(message)
        now = parts.clock.now()

        def greet() -> tuple[Welcome, Taken | None]:
            welcome = hello.greet(self.hypervisor_id, greeting, parts.ownership.owner, parts.limits, now)
            if welcome.journal_closed or welcome.stored_sequence < greeting.last_sequence:
                return welcome, None
            return welcome, self._judge(welcome.session_id, welcome.suspects)

        welcome, found = await parts.database.run(greet)
        self.session_id, self._greeting, self._suspects = welcome.session_id, greeting, welcome.suspects
        await self._queue.put(Response(welcome=self._welcome(welcome)))
        self._greeted = True
        self._on_welcome(self)
        if found is not None:
            await self._settle(found)

    async def _events_stored(self, stored_sequence: int) -> None:
        """Once all that the agent had to say at Hello is stored, judge the jobs that it does not know, and send commands."""
        if self._settled or self._greeting is None or stored_sequence < self._greeting.last_sequence:
            return
        await self._settle(await self._parts.database.run(self._judge, self.session_id, self._suspects))

    def _judge(self, session_id: str, suspects: tuple[Suspect, ...]) -> Taken:
        """Return the session's first commands. On the database's thread."""
        parts, now = self._parts, self._parts.clock.now()
        hello.judge(self.hypervisor_id, suspects, parts.limits, now)
        dispatch.run(parts.limits, now, self.hypervisor_id)
        return take(self.hypervisor_id, session_id, frozenset(), parts.vault, parts.limits, now)

    async def _settle(self, found: Taken) -> None:
        self._greeting, self._suspects = None, ()
        await self._send(found)
        self._settled = True
        if self._news:
            self._wake()

    def _heartbeat(self, message: session_service_pb2.Heartbeat) -> None:
        now = self._parts.clock.now()
        offset = convert.instant(message.time) - now if message.HasField("time") else None
        self._parts.pulse.felt(self.hypervisor_id, Sign(now, offset, message.load, message.scratch_free_bytes))

    async def _events(self, message: event_pb2.EventBatch) -> None:
        if len(message.events) > EVENTS_MAX:
            raise InvalidField(field="events", problem=f"are more than {EVENTS_MAX}")
        parts, journal_id = self._parts, message.journal_id
        batch = [convert.event(one) for one in message.events]
        now = parts.clock.now()

        def store_batch() -> int | None:
            epoch = installation.get().epoch  # it may have grown while we serve
            return events.store_batch(self.hypervisor_id, journal_id, batch, epoch, parts.limits, now)

        stored = await parts.database.run(store_batch)
        if stored is None:
            return
        await self._queue.put(Response(event_receipt=event_pb2.EventReceipt(journal_id=journal_id, sequence=stored)))
        if self._greeting is not None and journal_id == self._greeting.journal_id:
            await self._events_stored(stored)

    async def _progress(self, message: event_pb2.ProgressReport) -> None:
        await self._parts.database.run(
            jobs.report,
            message.job_id,
            self.hypervisor_id,
            message.attempt,
            convert.to_json(message.progress),
        )

    async def _take_inventory(self, message: event_pb2.InventoryReport) -> None:
        """Collect a report's parts; a newer report takes the place of one that never became whole."""
        if not 0 <= message.part < message.part_count <= INVENTORY_PARTS_MAX:
            raise InvalidField(
                field="inventory.part", problem=f"must be below part_count, at most {INVENTORY_PARTS_MAX}"
            )
        if message.version < self._inventory_version:
            return
        if message.version > self._inventory_version or self._inventory is None:
            self._inventory = _Inventory(message.part_count)
        self._inventory_version, whole = message.version, self._inventory
        whole.bytes += message.ByteSize()
        if whole.bytes > INVENTORY_BYTES_MAX:
            raise InvalidField(field="inventory", problem=f"has more than {INVENTORY_BYTES_MAX} bytes")
        if len(message.domains) + sum(map(len, whole.parts.values())) > DOMAINS_MAX:
            raise InvalidField(field="inventory.domains", problem=f"are more than {DOMAINS_MAX}")
        whole.parts[message.part] = [convert.domain(one) for one in message.domains]
        if len(whole.parts) < whole.part_count:
            return
        domains = [one for _, part in sorted(whole.parts.items()) for one in part]
        self._inventory = None
        await self._parts.database.run(
            claims.take_inventory, self.hypervisor_id, self.session_id, domains, self._parts.clock.now()
        )

    async def _lease_check(self, message: session_service_pb2.LeaseCheck) -> None:
        def holds() -> bool:
            epoch = installation.get().epoch  # as above
            stamp = Stamp(message.job_id, message.attempt, message.generation, epoch)
            return jobs.holds_lease(stamp, self.hypervisor_id)

        held = await self._parts.database.run(holds)
        verdict = session_service_pb2.LeaseVerdict(job_id=message.job_id, attempt=message.attempt, held=held)
        await self._queue.put(Response(lease_verdict=verdict))

    def _welcome(self, welcome: Welcome) -> session_service_pb2.Welcome:
        parts = self._parts
        interval = Duration()
        interval.FromTimedelta(timedelta(seconds=parts.limits.heartbeat_seconds))
        message = session_service_pb2.Welcome(
            session_id=welcome.session_id,
            heartbeat_interval=interval,
            stored_sequence=welcome.stored_sequence,
            verdicts=[
                session_service_pb2.OperationVerdict(
                    job_id=stamp.job_id, attempt=stamp.attempt, verdict=_VERDICTS[verdict]
                )
                for stamp, verdict in welcome.verdicts
            ],
            installation_id=parts.installation.installation_id,
            epoch=welcome.epoch,
            controller_version=parts.controller_version,
            protocol_version=welcome.protocol_version,
        )
        message.time.FromDatetime(welcome.time)
        return message


def _receive(hypervisor_id: str, receipt: command_pb2.CommandReceipt, now: datetime) -> None:
    """Take in that an agent has a command, and with one that revokes a ticket that this is done."""
    outbox.receive(hypervisor_id, receipt.command_id, now)
    if receipt.ticket_gone:
        tickets.confirm(hypervisor_id, receipt.command_id, now)
