"""An agent's side of the protocol, spoken by hand over a real connection, for tests of the controller alone.

    station = await Station.enroll(controller, "hv-1")      # a real key, a real request, a real certificate
    async with station.session() as session:                # hello, welcome
        await session.report([domain])
        command = await session.command()
        await session.finish(command, job_pb2.JOB_STATE_COMPLETED)

It does no work: it says what an agent says. One task reads, and everything is waited for with a deadline.
"""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from clients.connect import parse_enrollment_token
from clients.gen.backupmanager.agent.v1 import (
    command_pb2,
    enrollment_service_pb2,
    enrollment_service_pb2_grpc,
    event_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)
from clients.gen.backupmanager.v1 import (
    disk_pb2,
    hypervisor_pb2,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_pb2,
)
from tests.servers.controller import Controller

WAIT_SECONDS = 10.0
PROTOCOL_VERSION = 1


def key_and_request() -> tuple[bytes, str]:
    """Return a fresh private key and a certificate request for it, both PEM; the subject says nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, request.public_bytes(serialization.Encoding.PEM).decode()


def now() -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC))
    return made


def domain(name: str, *disks: str) -> hypervisor_pb2.Domain:
    """Return a running domain with qcow2 disks of 1 GiB."""
    return hypervisor_pb2.Domain(
        domain_uuid=str(uuid.uuid4()),
        name=name,
        state=hypervisor_pb2.DOMAIN_STATE_RUNNING,
        disks=[
            disk_pb2.Disk(disk=one, format="qcow2", size_bytes=1 << 30, path=f"/images/{one}")
            for one in disks or ("vda",)
        ],
        guest_agent=hypervisor_pb2.GUEST_AGENT_STATE_ABSENT,
    )


@dataclass
class Station:
    """An enrolled hypervisor: its id, and its certificate with the key."""

    controller: Controller
    name: str
    hypervisor_id: str
    key: bytes
    chain: bytes
    journal_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    sequence: Any = field(default_factory=lambda: itertools.count(1))
    last_sequence: int = 0

    @classmethod
    async def enroll(cls, controller: Controller, name: str, *, renew: bool = False) -> "Station":
        """Make an enrollment token as the admin and redeem it."""
        async with controller.channel() as channel:
            made = await hypervisor_service_pb2_grpc.HypervisorServiceStub(channel).CreateEnrollmentToken(
                hypervisor_service_pb2.CreateEnrollmentTokenRequest(name=name, renew=renew)
            )
        key, request = key_and_request()
        async with controller.channel("") as channel:
            answer = await enrollment_service_pb2_grpc.EnrollmentServiceStub(channel).Enroll(
                enrollment_service_pb2.EnrollRequest(
                    token=parse_enrollment_token(made.token).secret, certificate_request=request, agent_version="0.1.0"
                )
            )
        assert answer.session_port == controller.agents_port
        return cls(controller, name, answer.hypervisor_id, key, answer.certificate.encode())

    @asynccontextmanager
    async def session(self, *operations: session_service_pb2.OperationStatus) -> AsyncIterator["Session"]:
        """Dial, say hello, and wait for the welcome."""
        async with self.controller.agents_channel(self.key, self.chain) as channel:
            call = session_service_pb2_grpc.SessionServiceStub(channel).Session()
            session = Session(self, call)
            try:
                await session.hello(operations)
                yield session
            finally:
                await session.close()


class Session:
    """A stream that is open. `end` is set with the call's status once the controller ends it."""

    def __init__(self, station: Station, call: Any) -> None:
        self._station = station
        self._call = call
        self._said: asyncio.Queue[session_service_pb2.SessionResponse | None] = asyncio.Queue()  # None: the end
        self._reader = asyncio.create_task(self._read())
        self._inventory = itertools.count(1)
        self.end: asyncio.Future[grpc.RpcError | None] = asyncio.get_running_loop().create_future()
        self.welcome = session_service_pb2.Welcome()

    async def hello(self, operations: Sequence[session_service_pb2.OperationStatus]) -> None:
        hello = session_service_pb2.Hello(
            agent_version="0.1.0",
            protocol_version=PROTOCOL_VERSION,
            boot_id="boot",
            journal_id=self._station.journal_id,
            last_sequence=self._station.last_sequence,
            operations=operations,
            capabilities=hypervisor_pb2.HypervisorCapabilities(
                libvirt_version="9.0.0",
                qemu_version="7.2.0",
                storage_types=["local", "sftp", "s3", "ftp", "rclone"],
                protocol_version=PROTOCOL_VERSION,
            ),
            time=now(),
        )
        await self.say(hello=hello)
        self.welcome = (await self.next("welcome")).welcome

    async def say(self, **message: Any) -> None:
        await self._call.write(session_service_pb2.SessionRequest(**message))

    async def dare(self, message: session_service_pb2.SessionRequest) -> bool:
        """Say anything at all; return whether the stream still takes it."""
        try:
            await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return False
        return True

    async def half_close(self) -> None:
        """Say that nothing more will be said."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def next(self, kind: str) -> session_service_pb2.SessionResponse:
        """Return the next message, which must be of a kind; raises what the stream ended with, TimeoutError for silence."""
        async with asyncio.timeout(WAIT_SECONDS):
            message = await self._said.get()
        if message is None:
            self._said.put_nowait(None)  # it is the last word for whoever asks again, too
            raise self.end.result() or AssertionError("the stream ended")
        assert message.WhichOneof("message") == kind, message
        return message

    async def ended(self) -> grpc.RpcError | None:
        """Wait for the controller to end the stream, and return its status (None for OK)."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await asyncio.shield(self.end)

    async def heartbeat(self) -> None:
        await self.say(heartbeat=session_service_pb2.Heartbeat(time=now(), load=0.5, scratch_free_bytes=1 << 40))

    async def report(self, domains: Sequence[hypervisor_pb2.Domain]) -> None:
        """Report the whole inventory in one part."""
        report = event_pb2.InventoryReport(version=next(self._inventory), part=0, part_count=1, domains=domains)
        await self.say(inventory=report)

    async def command(self) -> command_pb2.Command:
        """Return the next command, with its receipt sent."""
        command = (await self.next("command")).command
        gone = command.WhichOneof("body") == "revoke_ticket"
        await self.say(command_receipt=command_pb2.CommandReceipt(command_id=command.command_id, ticket_gone=gone))
        return command

    async def event(self, command: command_pb2.Command, **event: Any) -> None:
        """Send one durable event of a command's job, and wait for its receipt."""
        sequence = next(self._station.sequence)
        self._station.last_sequence = sequence
        one = event_pb2.Event(
            sequence=sequence,
            job_id=command.job_id,
            attempt=command.attempt,
            generation=command.generation,
            epoch=command.epoch,
            time=now(),
            **event,
        )
        await self.say(events=event_pb2.EventBatch(journal_id=self._station.journal_id, events=[one]))
        receipt = (await self.next("event_receipt")).event_receipt
        assert receipt.sequence == sequence

    async def accept(self, command: command_pb2.Command) -> None:
        await self.event(command, accepted=event_pb2.OperationAccepted())

    async def finish(self, command: command_pb2.Command, state: job_pb2.JobState.ValueType, **fields: Any) -> None:
        await self.event(command, finished=event_pb2.OperationFinished(state=state, **fields))

    async def progress(self, command: command_pb2.Command, done: int, total: int) -> None:
        words = job_pb2.JobProgress(stage="read", bytes_done=done, bytes_total=total, report_time=now())
        await self.say(
            progress=event_pb2.ProgressReport(job_id=command.job_id, attempt=command.attempt, progress=words)
        )

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait({self._reader})
        if not self.end.done():
            self.end.set_result(None)

    async def _read(self) -> None:
        try:
            async for message in self._call:
                self._said.put_nowait(message)
        except asyncio.CancelledError:
            return
        except grpc.RpcError as error:
            self.end.set_result(error)
        else:
            self.end.set_result(None)
        self._said.put_nowait(None)
