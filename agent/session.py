"""One stream to the controller, from Hello to its end.

                 ┌ reader: Welcome, commands, receipts, verdicts ◄──────────────────────────┐
    session.run ─┼ writer: the ONE place that writes; takes what is most urgent   ──────────┼─ controller
                 └ watch:  a write, a Welcome or a receipt that does not come ends it all    ┘

Order of what is written: answers (receipts, lease checks), heartbeats, events, inventory, progress, log. Reads and writes are
never timed out by themselves, since that would cancel the whole stream (grpc.aio); `watch` looks from the side.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpc import aio

from agent import convert, convert_results, storage_means
from agent.commands import Commands
from agent.errors import SessionEnded
from agent.host import Host
from agent.inventory import Inventory, Versions
from agent.outbox import Position
from agent.records import Operation
from agent.supervisor import Supervisor
from agent.version import AGENT_VERSION, PROTOCOL_VERSION
from agent.vitals import FreeRoom, load_average
from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2, session_service_pb2
from clients.gen.backupmanager.v1 import hypervisor_pb2
from engine.units import KIB

if TYPE_CHECKING:
    from clients.gen.backupmanager.agent.v1.session_service_pb2_grpc import SessionServiceStub

log = logging.getLogger(__name__)

Request = session_service_pb2.SessionRequest
EVENTS_BYTES_MAX = 900 * KIB  # with sequences and framing a batch stays below 1 MiB
EVENTS_COUNT_MAX = 500
BATCHES_MAX = 4  # sent and not yet acknowledged
LOG_BYTES_MAX = 256 * KIB
WELCOME_SECONDS = 30.0
WRITE_SECONDS = 60.0
RECEIPT_SECONDS = 120.0
LEASE_SECONDS = 10.0
IDLE_SECONDS = 1.0
HEARTBEAT_SECONDS_MIN, HEARTBEAT_SECONDS_DEFAULT, HEARTBEAT_SECONDS_MAX = 0.05, 10.0, 300.0
GOOD_SECONDS = 10.0


@dataclass(slots=True)
class _Sending:
    """How far the writer is."""

    cursor: int = 0
    batches: deque[tuple[int, float]] = field(default_factory=deque)  # last sequence, when sent
    inventory_version: int = 0  # the inventory's own
    report_version: int = 0  # this session's
    parts: deque[event_pb2.InventoryReport] = field(default_factory=deque)
    heartbeat_seconds: float = HEARTBEAT_SECONDS_DEFAULT
    heartbeat_uptime: float = 0.0
    write_began: float | None = None


class Session:
    """Run it once. `good` tells afterwards whether it was one: welcomed, and of some length."""

    def __init__(
        self, host: Host, supervisor: Supervisor, commands: Commands, inventory: Inventory, room: FreeRoom
    ) -> None:
        self._host = host
        self._supervisor = supervisor
        self._commands = commands
        self._inventory = inventory
        self._room = room
        self._changed = host.journal.changed
        self._urgent: deque[Request] = deque()
        self._leases: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._welcomed = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending = _Sending()
        self._position = Position("", 0, 0)
        self._versions = Versions()
        self._means = storage_means.StorageMeans()
        self._began = host.clock.uptime()
        self._call: Any = None  # of the generated stub, whose type says less than it can

    @property
    def good(self) -> bool:
        return self._welcomed.is_set() and self._host.clock.uptime() - self._began >= GOOD_SECONDS

    def end(self, detail: str) -> None:
        """End the session from our side; `run` then raises SessionEnded."""
        if not self._ended.done():
            self._ended.set_exception(SessionEnded(detail=detail))

    async def run(self, stub: "SessionServiceStub") -> None:
        """Serve until the stream ends. Raises SessionEnded, AioRpcError."""
        self._call = stub.Session()
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        watch = asyncio.create_task(self._watch())
        tasks: set[asyncio.Future[Any]] = {reader, writer, watch, self._ended}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writer in done:
                await asyncio.wait({reader}, timeout=2.0)  # it knows why the stream ended
            for task in (self._ended, watch, reader, writer):
                if task.done():
                    task.result()
            raise SessionEnded(detail="the controller closed the stream")
        except asyncio.InvalidStateError as error:
            raise SessionEnded(detail="the stream broke") from error
        finally:
            self._call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for future in self._leases.values():
                future.cancel()

    async def check_lease(self, operation: Operation) -> bool | None:
        """Ask whether a job still holds its lease; None without an answer in time."""
        if not self._welcomed.is_set():
            return None
        future = self._leases.setdefault(operation.key, asyncio.get_running_loop().create_future())
        check = session_service_pb2.LeaseCheck(
            job_id=operation.job_id, attempt=operation.attempt, generation=operation.generation
        )
        self._send_soon(Request(lease_check=check))
        try:
            return await asyncio.wait_for(asyncio.shield(future), LEASE_SECONDS)
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if future.cancelled():  # the session ended before the answer
                return None
            raise
        finally:
            self._leases.pop(operation.key, None)

    # ---- reading -------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._call.read()
            if message is aio.EOF:
                return
            match message.WhichOneof("message"):
                case "welcome":
                    await self._take_welcome(message.welcome)
                case "command":
                    await self._take_command(message.command)
                case "event_receipt":
                    if message.event_receipt.journal_id == self._position.journal_id:
                        await self._take_receipt(message.event_receipt.sequence)
                case "lease_verdict":
                    verdict = message.lease_verdict
                    future = self._leases.get((verdict.job_id, verdict.attempt))
                    if future is not None and not future.done():
                        future.set_result(verdict.held)
                case None:
                    log.warning("passed over a message that this version does not know")

    async def _take_welcome(self, welcome: session_service_pb2.Welcome) -> None:
        stored = welcome.stored_sequence
        if not self._host.journal.agrees(self._position, stored):
            log.warning(
                "the journal and the controller disagree, a new journal begins stored=%s last=%s acknowledged=%s",
                stored, self._position.last_sequence, self._position.acknowledged,
            )  # fmt: skip
            await self._host.journal.restart(self._host.clock.now())
            raise SessionEnded(detail="a new journal begins")
        await self._take_receipt(stored)
        self._sending.cursor = stored
        if welcome.HasField("heartbeat_interval"):
            seconds = convert.seconds_of(welcome.heartbeat_interval)
            self._sending.heartbeat_seconds = min(max(seconds, HEARTBEAT_SECONDS_MIN), HEARTBEAT_SECONDS_MAX)
        for verdict in welcome.verdicts:
            if verdict.verdict in {session_service_pb2.VERDICT_CANCEL, session_service_pb2.VERDICT_UNKNOWN}:
                await self._supervisor.cancel_by_key(verdict.job_id, verdict.attempt, convert.GRACE_SECONDS)
        log.info("welcomed session_id=%s controller_version=%s", welcome.session_id, welcome.controller_version)
        self._welcomed.set()
        self._changed.set()

    async def _take_command(self, command: command_pb2.Command) -> None:
        if await self._commands.take(command):
            gone = command.WhichOneof("body") == "revoke_ticket"
            receipt = command_pb2.CommandReceipt(command_id=command.command_id, ticket_gone=gone)
            self._send_soon(Request(command_receipt=receipt))

    async def _take_receipt(self, sequence: int) -> None:
        self._supervisor.forget(await self._host.journal.acknowledge(sequence))
        batches = self._sending.batches
        while batches and batches[0][0] <= sequence:
            batches.popleft()
        self._changed.set()

    # ---- writing -------------------------------------------------------------------------------------------------------

    def _send_soon(self, request: Request) -> None:
        self._urgent.append(request)
        self._changed.set()

    async def _write(self) -> None:
        await self._put(Request(hello=await self._hello()))
        await self._welcomed.wait()
        while True:
            self._changed.clear()  # before looking: what comes meanwhile sets it again
            request = await self._next()
            if request is not None:
                await self._put(request)
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), min(IDLE_SECONDS, self._sending.heartbeat_seconds))
            except TimeoutError:
                continue

    async def _put(self, request: Request) -> None:
        self._sending.write_began = self._host.clock.uptime()
        await self._call.write(request)
        self._sending.write_began = None

    async def _hello(self) -> session_service_pb2.Hello:
        journal = self._host.journal
        self._position = await journal.position()
        self._versions = self._inventory.versions
        self._means = await self._look()
        operations = [one for one in await journal.operations() if one.state != "waiting"]
        return session_service_pb2.Hello(
            agent_version=AGENT_VERSION,
            protocol_version=PROTOCOL_VERSION,
            boot_id=self._host.boot_id,
            journal_id=self._position.journal_id,
            last_sequence=self._position.last_sequence,
            acknowledged_sequence=self._position.acknowledged,
            operations=[
                session_service_pb2.OperationStatus(
                    job_id=one.job_id, attempt=one.attempt, generation=one.generation, epoch=one.epoch
                )
                for one in operations
            ],
            capabilities=hypervisor_pb2.HypervisorCapabilities(
                libvirt_version=self._versions.libvirt,
                qemu_version=self._versions.qemu,
                storage_types=self._means.types,
                protocol_version=PROTOCOL_VERSION,
                rclone_remotes=self._means.rclone_remotes,
                rclone_remotes_known=self._means.remotes_known,
            ),
            time=convert_results.stamp(self._host.clock.now()),
            command_ids=await journal.open_command_ids(),
        )

    async def _look(self) -> storage_means.StorageMeans:
        return await asyncio.to_thread(storage_means.look, self._host.config.rclone_config_file)

    async def _next(self) -> Request | None:
        """Return the most urgent of what there is to say; None when there is nothing."""
        uptime = self._host.clock.uptime()
        if self._urgent:
            return self._urgent.popleft()
        if uptime - self._sending.heartbeat_uptime >= self._sending.heartbeat_seconds:
            self._sending.heartbeat_uptime = uptime
            if await self._look() != self._means:
                self.end("the host's means for storages changed")  # only a Hello tells them
            return Request(heartbeat=self._heartbeat())
        return (
            await self._next_events(uptime) or self._next_inventory() or self._next_progress(uptime) or self._next_log()
        )

    def _heartbeat(self) -> session_service_pb2.Heartbeat:
        return session_service_pb2.Heartbeat(
            time=convert_results.stamp(self._host.clock.now()),
            load=load_average(),
            scratch_free_bytes=self._room.bytes(),
        )

    async def _next_events(self, uptime: float) -> Request | None:
        sending = self._sending
        if len(sending.batches) >= BATCHES_MAX:
            return None
        events = await self._host.journal.events_after(sending.cursor, EVENTS_COUNT_MAX, EVENTS_BYTES_MAX)
        if not events:
            return None
        batch = event_pb2.EventBatch(journal_id=self._position.journal_id)
        for stored in events:
            event = batch.events.add()
            event.ParseFromString(stored.body)
            event.sequence = stored.sequence
        sending.cursor = events[-1].sequence
        sending.batches.append((sending.cursor, uptime))
        return Request(events=batch)

    def _next_inventory(self) -> Request | None:
        sending, inventory = self._sending, self._inventory
        if inventory.versions != self._versions and inventory.versions != Versions():
            self.end("the host's abilities changed")  # only a Hello tells them
        if inventory.domains is not None and inventory.version != sending.inventory_version:
            sending.inventory_version = inventory.version
            sending.report_version += 1
            sending.parts = deque(convert_results.inventory_parts(inventory.domains, sending.report_version))
        return Request(inventory=sending.parts.popleft()) if sending.parts else None

    def _next_progress(self, uptime: float) -> Request | None:
        for progress in self._host.feed.take_progress(uptime):
            self._urgent.append(Request(progress=convert_results.progress_report(progress)))
        return self._urgent.popleft() if self._urgent else None

    def _next_log(self) -> Request | None:
        lines = self._host.feed.take_lines(LOG_BYTES_MAX)
        return Request(logs=convert_results.log_batch(lines)) if lines else None

    # ---- watching ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Raise SessionEnded when the peer is there, and yet does not answer: keepalive would never notice."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            uptime, sending = self._host.clock.uptime(), self._sending
            if not self._welcomed.is_set() and uptime - self._began > WELCOME_SECONDS:
                raise SessionEnded(detail=f"no welcome within {WELCOME_SECONDS:.0f} s")
            if sending.write_began is not None and uptime - sending.write_began > WRITE_SECONDS:
                raise SessionEnded(detail=f"the controller has read nothing for {WRITE_SECONDS:.0f} s")
            if sending.batches and uptime - sending.batches[0][1] > RECEIPT_SECONDS:
                raise SessionEnded(detail=f"events were not acknowledged for {RECEIPT_SECONDS:.0f} s")
