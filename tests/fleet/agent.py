"""One simulated agent: a real session over mutual TLS, a journal in memory, and engines that only wait.

    dial ─► Hello ─► Welcome ─► commands ─► receipt, accepted ─► (job_seconds) ─► finished ─► kept until its receipt comes
      └──────────────── the stream broke: the next controller, with what is unacknowledged and in flight ◄────────┘

It keeps the rules that the real agent keeps: a command is done once however often it comes, events are numbered without gaps and sent
again until they are acknowledged, work goes on while nobody is connected. It dials as the real one does, and waits by the same rule.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from grpc import aio

from agent.backoff import Backoff
from agent.session import GOOD_SECONDS
from clients import connect
from clients.errors import refusal
from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2, session_service_pb2, session_service_pb2_grpc
from clients.gen.backupmanager.v1 import disk_pb2, job_pb2
from tests.fleet.seed import Host

Request = session_service_pb2.SessionRequest
_Key = tuple[str, int]


@dataclass
class Plan:
    """How the fleet's imitated engines behave; may be changed while they run."""

    job_seconds: float = 0.0
    addresses: Sequence[str] = ()
    authority: str = ""
    connected: int = 0
    welcomes: int = 0
    began: "Counter[_Key]" = field(default_factory=Counter)  # (job, attempt): how often an engine was started for it
    finished: "Counter[_Key]" = field(default_factory=Counter)
    ended: set[_Key] = field(default_factory=set)  # whose end the controller has acknowledged
    taken: list[float] = field(default_factory=list)  # when each command came, by the monotonic clock
    at_work: "Counter[str]" = field(default_factory=Counter)  # hypervisor -> the servers that its batches work on now
    at_work_max: int = 0  # of one hypervisor
    batches_max: int = 0  # that one hypervisor had unfinished jobs of at one time
    faults: list[str] = field(default_factory=list)


class SimulatedAgent:
    """Run it as a task; cancel it to end it. Belongs to one event loop."""

    def __init__(self, host: Host, plan: Plan, number: int = 0) -> None:
        self.host = host
        self._plan = plan
        self._turn = number  # so that several controllers share a fleet
        self._journal_id = str(uuid.uuid4())
        self._sequence = 0
        self._events: deque[event_pb2.Event] = deque()  # not acknowledged
        self._operations: dict[_Key, command_pb2.Command] = {}
        self._unfinished: dict[_Key, str] = {}  # the batches of those that have not ended, "" for a single's
        self._commands: set[str] = set()
        self._engines: set[asyncio.Task[None]] = set()
        self._batches: dict[str, asyncio.Semaphore] = {}  # the places of each batch that was begun
        self._call: Any = None
        self._welcome_time = 0.0  # of this session, by the monotonic clock; 0 before it
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Keep a session until cancelled."""
        backoff = Backoff()
        try:
            while True:
                address = self._plan.addresses[self._turn % len(self._plan.addresses)]
                reason = detail = ""
                self._welcome_time = 0.0
                try:
                    await self._serve(address)
                except aio.AioRpcError as error:
                    refused = refusal(error)
                    reason, detail = refused.reason, refused.message
                except (asyncio.InvalidStateError, EOFError):
                    pass
                except Exception as error:
                    self._plan.faults.append(repr(error))
                    raise
                if 0 < self._welcome_time <= time.monotonic() - GOOD_SECONDS:
                    backoff.reset()
                self._turn += 1
                await asyncio.sleep(backoff.seconds(reason, detail))
        finally:
            for engine in self._engines:
                engine.cancel()
            await asyncio.gather(*self._engines, return_exceptions=True)

    async def _serve(self, address: str) -> None:
        async with connect.channel(address, self._plan.authority, certificate=self.host.certificate) as channel:
            stub: Any = session_service_pb2_grpc.SessionServiceStub(channel)
            call = stub.Session()
            beats: asyncio.Task[None] | None = None
            welcomed = False
            try:
                await call.write(self._hello())
                welcome = await self._next(call)
                beats = asyncio.create_task(
                    self._beat(call, welcome.welcome.heartbeat_interval.ToTimedelta().total_seconds())
                )
                self._call, welcomed, self._welcome_time = call, True, time.monotonic()
                self._plan.connected += 1
                self._plan.welcomes += 1
                self._take_welcome(welcome.welcome)
                await self._send_events()
                while True:
                    await self._take(await self._next(call))
            finally:
                self._call = None
                self._plan.connected -= welcomed
                if beats is not None:
                    beats.cancel()
                    await asyncio.gather(beats, return_exceptions=True)
                call.cancel()

    async def _next(self, call: Any) -> Any:
        message = await call.read()
        if message is aio.EOF:
            raise EOFError
        return message

    async def _write(self, call: Any, **message: Any) -> None:
        async with self._writing:
            await call.write(Request(**message))

    async def _beat(self, call: Any, seconds: float) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.sleep(seconds * random.random())
            while True:
                beat = session_service_pb2.Heartbeat(load=0.5, scratch_free_bytes=1 << 40)
                beat.time.GetCurrentTime()
                await self._write(call, heartbeat=beat)
                await asyncio.sleep(seconds)

    # ---- what the controller says ---------------------------------------------------------------------------------------

    def _hello(self) -> Request:
        hello = session_service_pb2.Hello(
            agent_version="0.1.0",
            protocol_version=1,
            boot_id="boot",
            journal_id=self._journal_id,
            last_sequence=self._sequence,
            operations=[
                session_service_pb2.OperationStatus(
                    job_id=one.job_id, attempt=one.attempt, generation=one.generation, epoch=one.epoch
                )
                for one in self._operations.values()
            ],
            command_ids=sorted(self._commands),
        )
        hello.time.GetCurrentTime()
        return Request(hello=hello)

    def _take_welcome(self, welcome: session_service_pb2.Welcome) -> None:
        self._acknowledge(welcome.stored_sequence)
        for one in welcome.verdicts:
            if one.verdict != session_service_pb2.VERDICT_KEEP:
                self._end((one.job_id, one.attempt), job_pb2.JOB_STATE_CANCELLED)

    async def _take(self, message: Any) -> None:
        match message.WhichOneof("message"):
            case "command":
                await self._take_command(message.command)
            case "event_receipt":
                self._acknowledge(message.event_receipt.sequence)

    async def _take_command(self, command: command_pb2.Command) -> None:
        self._plan.taken.append(time.monotonic())
        new = command.command_id not in self._commands
        self._commands.add(command.command_id)
        await self._write(self._call, command_receipt=command_pb2.CommandReceipt(command_id=command.command_id))
        key = (command.job_id, command.attempt)
        if not new:
            return
        if command.WhichOneof("body") == "cancel":
            self._end(key, job_pb2.JOB_STATE_CANCELLED)
        else:
            self._plan.began[key] += 1
            self._operations[key] = command
            self._unfinished[key] = command.run.batch.batch_id
            self._plan.batches_max = max(self._plan.batches_max, len({*self._unfinished.values()} - {""}))
            self._say(command, accepted=event_pb2.OperationAccepted())
            engine = asyncio.create_task(self._work(command))
            self._engines.add(engine)
            engine.add_done_callback(self._engines.discard)
        await self._send_events()

    # ---- engines and the journal ----------------------------------------------------------------------------------------

    async def _work(self, command: command_pb2.Command) -> None:
        """Be an engine that needs `job_seconds` and succeeds; a batch's works on so many servers at once as it was told."""
        key = (command.job_id, command.attempt)
        async with self._place(command):
            if key in self._operations:
                of_batch = command.run.HasField("batch")
                self._plan.at_work[self.host.hypervisor_id] += of_batch
                self._plan.at_work_max = max(self._plan.at_work_max, self._plan.at_work[self.host.hypervisor_id])
                try:
                    await asyncio.sleep(self._plan.job_seconds)
                finally:
                    self._plan.at_work[self.host.hypervisor_id] -= of_batch
        if key in self._operations:
            self._plan.finished[key] += 1
            self._end(key, job_pb2.JOB_STATE_COMPLETED)
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            await self._send_events()

    def _place(self, command: command_pb2.Command) -> AbstractAsyncContextManager[object]:
        """Return what lets a job of a batch begin; a single may at once."""
        if not command.run.HasField("batch"):
            return contextlib.nullcontext()
        batch = command.run.batch
        return self._batches.setdefault(batch.batch_id, asyncio.Semaphore(batch.concurrency))

    def _end(self, key: _Key, state: "job_pb2.JobState.ValueType") -> None:
        command = self._operations.get(key)
        self._unfinished.pop(key, None)
        if command is not None and not any(
            (one.job_id, one.attempt) == key and one.HasField("finished") for one in self._events
        ):
            finished = event_pb2.OperationFinished(state=state)
            if command.run.WhichOneof("verb") == "backup" and state == job_pb2.JOB_STATE_COMPLETED:
                finished.record.CopyFrom(_record(command))
            self._say(command, finished=finished)

    def _say(self, command: command_pb2.Command, **what: Any) -> None:
        self._sequence += 1
        event = event_pb2.Event(
            sequence=self._sequence,
            job_id=command.job_id,
            attempt=command.attempt,
            generation=command.generation,
            epoch=command.epoch,
            **what,
        )
        event.time.GetCurrentTime()
        self._events.append(event)

    def _acknowledge(self, sequence: int) -> None:
        while self._events and self._events[0].sequence <= sequence:
            event = self._events.popleft()
            if event.HasField("finished"):
                self._operations.pop((event.job_id, event.attempt), None)
                self._plan.ended.add((event.job_id, event.attempt))

    async def _send_events(self) -> None:
        """Send all that is not acknowledged; what comes twice is passed over there."""
        if self._call is not None and self._events:
            batch = event_pb2.EventBatch(journal_id=self._journal_id, events=self._events)
            await self._write(self._call, events=batch)


def _record(command: command_pb2.Command) -> event_pb2.BackupRecord:
    work = command.run.backup
    record = event_pb2.BackupRecord(
        domain_uuid=work.domain_uuid, manifest_digest="d" * 64, needed_backup_ids=[work.backup_id]
    )
    backup = record.backup
    backup.backup_id, backup.server_id, backup.job_id = work.backup_id, work.server_id, command.job_id
    backup.create_time.CopyFrom(work.create_time)
    disk = backup.disks.add(
        disk="vda", chain_id=work.backup_id, size_bytes=10 << 30, data_bytes=1 << 20, stored_bytes=1 << 20
    )
    disk.type = disk_pb2.BACKUP_TYPE_FULL
    return record
