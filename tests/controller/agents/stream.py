"""A controller's sessions behind a real grpc.aio server on loopback, and an agent that says what a test tells it to.

async with Controller(world) as controller:
    async with controller.dial(agent) as stream:
        welcome = await stream.hello()
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from grpc import StatusCode, aio

from clients.gen.backupmanager.agent.v1 import event_pb2, session_service_pb2, session_service_pb2_grpc
from controller import installation
from controller.agents.outbox import Stamp
from controller.agents.ownership import Ownership
from controller.agents.sessions import Sessions
from controller.changes import Changes
from engine.errors import BackupManagerError
from tests.controller.world import Agent, World

Request = session_service_pb2.SessionRequest
Response = session_service_pb2.SessionResponse
SECONDS = 10.0


class _Servicer(session_service_pb2_grpc.SessionServiceServicer):
    """Who calls stands in the metadata here; certificates and the translation of errors are the services' business."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Response]:  # noqa: N802 - gRPC's name
        caller = dict(context.invocation_metadata())
        served = self._sessions.serve(caller["hypervisor"], caller["serial"], request_iterator)
        try:
            async with aclosing(served) as responses:
                async for response in responses:
                    yield response
        except BackupManagerError as error:
            await context.abort(StatusCode.ABORTED, error.reason)

    async def RenewCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        raise NotImplementedError


class Controller:
    """Sessions, changes and a server, on the world's database."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.changes = Changes()
        world.database.subscribe(self.changes.publish)
        own = world.run(installation.get)
        self.ownership = Ownership(world.database)
        self.sessions = Sessions(
            world.database, world.vault, world.clock, world.limits, self.changes, own, self.ownership, "0.1.0"
        )
        self._server = aio.server()
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(_Servicer(self.sessions), self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._stopped = False

    async def __aenter__(self) -> Self:
        await self.ownership.start()
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await self.sessions.stop()
            await self._server.stop(5)
            await self.ownership.stop()
            self.changes.close()

    def dial(self, agent: Agent) -> "Stream":
        return Stream(f"127.0.0.1:{self._port}", agent)


class Stream:
    """An agent's end of one stream. One reader fills a queue; a test takes from it with a deadline."""

    def __init__(self, address: str, agent: Agent) -> None:
        self.agent = agent
        self._channel = aio.insecure_channel(address)
        self._responses: asyncio.Queue[Response | None] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()

    async def __aenter__(self) -> Self:
        stub: Any = session_service_pb2_grpc.SessionServiceStub(self._channel)
        metadata = (("hypervisor", self.agent.hypervisor_id), ("serial", self.agent.serial))
        self._call = stub.Session(metadata=metadata)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            while await self._reading.wait():
                response = await self._call.read()
                if response is aio.EOF:
                    break
                self._responses.put_nowait(response)
        except aio.AioRpcError:
            pass
        finally:
            self._responses.put_nowait(None)

    def stop_reading(self) -> None:
        """Read one more message and then none; cancelling a read would cancel the stream."""
        self._reading.clear()

    async def flood(self, job_id: str, count: int) -> None:
        """Ask much and listen to nothing."""
        for _ in range(count):
            await self.send(lease_check={"job_id": job_id, "attempt": 1, "generation": 1})

    async def send(self, **message: Any) -> None:
        await self._call.write(Request(**message))

    async def next(self, kind: str) -> Any:
        """Return the next message, which must be of this kind."""
        async with asyncio.timeout(SECONDS):
            response = await self._responses.get()
        assert response is not None, f"the stream ended with {await self.end()}"
        assert response.WhichOneof("message") == kind, response
        return getattr(response, kind)

    async def end(self) -> str:
        """Wait for the stream's end and return why: our reason, "" for none."""
        async with asyncio.timeout(SECONDS):
            await self._call.code()
            return str(await self._call.details())

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def hello(self, *operations: Stamp, command_ids: tuple[str, ...] = (), **values: Any) -> Any:
        """Say Hello and return Welcome."""
        message = session_service_pb2.Hello(
            agent_version="0.1.0",
            protocol_version=values.pop("protocol_version", 1),
            boot_id="boot",
            journal_id=self.agent.journal_id,
            last_sequence=values.pop("last_sequence", self.agent.sequence),
            operations=[
                session_service_pb2.OperationStatus(
                    job_id=one.job_id, attempt=one.attempt, generation=one.generation, epoch=one.epoch
                )
                for one in operations
            ],
            command_ids=command_ids,
        )
        message.time.FromDatetime(self.agent.world.clock.time)
        await self.send(hello=message)
        return await self.next("welcome")

    async def events(self, *events: event_pb2.Event) -> int:
        """Send a batch and return the sequence of the receipt."""
        await self.send(events=event_pb2.EventBatch(journal_id=self.agent.journal_id, events=events))
        receipt = await self.next("event_receipt")
        assert receipt.journal_id == self.agent.journal_id
        return int(receipt.sequence)

    def event(self, stamp: Stamp, **what: Any) -> event_pb2.Event:
        """Return the journal's next event."""
        self.agent.sequence += 1
        event = event_pb2.Event(
            sequence=self.agent.sequence,
            job_id=stamp.job_id,
            attempt=stamp.attempt,
            generation=stamp.generation,
            epoch=stamp.epoch,
            **what,
        )
        event.time.FromDatetime(self.agent.world.clock.time)
        return event
