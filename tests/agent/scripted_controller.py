"""A controller that does what a test says: a real gRPC server with mTLS, and the contract of the session kept strictly.

It runs in a thread of its own, so that a test may block. It stores events as the real one must: in order, without gaps,
each one once; an agent that breaks this fails the test.
"""

import asyncio
import base64
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from grpc import aio

from clients.gen.backupmanager.agent.v1 import (
    command_pb2,
    enrollment_service_pb2,
    enrollment_service_pb2_grpc,
    event_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)
from tests.clients.authority import Authority
from tests.waiting import wait_until

MESSAGE_BYTES_MAX = 1 << 20
OPTIONS = (
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.so_reuseport", 0),
)
Response = session_service_pb2.SessionResponse


class ScriptedController:
    """`with ScriptedController() as controller`. Attributes are read by the test's thread, and only grow."""

    def __init__(self, *, certificate_life: timedelta = timedelta(days=90)) -> None:
        self.authority = Authority()
        self.certificate_life = certificate_life
        self.hellos: list[session_service_pb2.Hello] = []
        self.events: list[event_pb2.Event] = []
        self.receipts: list[str] = []
        self.gone: list[str] = []  # of them, those that say that a ticket is
        self.heartbeats: list[session_service_pb2.Heartbeat] = []
        self.progress: list[event_pb2.ProgressReport] = []
        self.log_lines: list[event_pb2.JobLogLine] = []
        self.inventories: list[event_pb2.InventoryReport] = []
        self.lease_checks: list[session_service_pb2.LeaseCheck] = []
        self.serials: list[str] = []
        self.largest_message = 0
        self.faults: list[str] = []
        self.stored: dict[str, int] = defaultdict(int)
        self.renewals = 0
        # What the test may change:
        self.acknowledge = True
        self.lease_held: bool | None = True
        self.verdicts: dict[str, int] = {}
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.heartbeat_seconds = 0.2
        self.token = "one-time-secret"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted controller", daemon=True)
        self._server: aio.Server | None = None
        self._outgoing: asyncio.Queue[Response | Exception] | None = None
        self._waiting: dict[str, command_pb2.Command] = {}
        self.port = self.session_port = 0

    # ---- for the test --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_online()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_offline()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        if kind is None:
            assert not self.faults, self.faults

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def enrollment_token(self) -> str:
        data = json.dumps({"secret": self.token, "ca": self.authority.fingerprint}).encode()
        return "bm1." + base64.urlsafe_b64encode(data).decode().rstrip("=")

    def go_online(self) -> None:
        self._run(self._start())

    def go_offline(self) -> None:
        self._run(self._stop())

    def cut(self) -> None:
        """Break the stream that there is."""

        def now() -> None:
            if self._outgoing is not None:
                self._outgoing.put_nowait(ConnectionError())

        self._loop.call_soon_threadsafe(now)

    def send(self, command: command_pb2.Command) -> None:
        """Send a command, now and at every new session, until its receipt has come."""

        def now() -> None:
            self._waiting[command.command_id] = command
            if self._outgoing is not None:
                self._outgoing.put_nowait(Response(command=command))

        self._loop.call_soon_threadsafe(now)

    def send_event_receipts(self) -> None:
        """Acknowledge what is stored, after it was not acknowledged."""

        def now() -> None:
            if self._outgoing is not None:
                journal_id, sequence = self.hellos[-1].journal_id, self.stored[self.hellos[-1].journal_id]
                receipt = event_pb2.EventReceipt(journal_id=journal_id, sequence=sequence)
                self._outgoing.put_nowait(Response(event_receipt=receipt))

        self._loop.call_soon_threadsafe(now)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
        return wait_until(condition, seconds, what)

    def of_job(self, job_id: str, kind: str) -> list[event_pb2.Event]:
        return [event for event in list(self.events) if event.job_id == job_id and event.WhichOneof("event") == kind]

    def wait_event(self, job_id: str, kind: str, seconds: float = 20) -> event_pb2.Event:
        found: list[event_pb2.Event] = self.until(lambda: self.of_job(job_id, kind), f"{kind} of {job_id}", seconds)
        return found[0]

    def wait_receipt(self, command_id: str) -> None:
        self.until(lambda: command_id in self.receipts, f"the receipt of {command_id}")

    # ---- in its loop ---------------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        key, chain = self.authority.issue()
        server = aio.server(options=OPTIONS)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(_Sessions(self), server)
        enrollment_service_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrollments(self), server)
        public = grpc.ssl_server_credentials([(key, chain)])
        private = grpc.ssl_server_credentials([(key, chain)], self.authority.pem.encode(), require_client_auth=True)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", public)
        self.session_port = server.add_secure_port(f"127.0.0.1:{self.session_port}", private)
        await server.start()
        self._server = server

    async def _stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def serve(self, requests: Any, context: Any) -> None:
        pem = context.auth_context()["x509_pem_cert"][0]
        self.serials.append(str(x509.load_pem_x509_certificate(pem).serial_number))
        if self.refusal is not None:
            await context.abort(*self.refusal)
        outgoing = self._outgoing = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, outgoing))
        try:
            while True:
                response = await outgoing.get()
                if isinstance(response, Exception):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was cut")
                    raise response
                if response.ByteSize() > MESSAGE_BYTES_MAX:
                    self.faults.append("a message of ours was too large")
                await context.write(response)
        finally:
            reader.cancel()
            if self._outgoing is outgoing:
                self._outgoing = None

    async def _read(self, requests: Any, outgoing: "asyncio.Queue[Response | Exception]") -> None:
        async for request in requests:
            size = request.ByteSize()
            self.largest_message = max(self.largest_message, size)
            if size > MESSAGE_BYTES_MAX:
                self.faults.append(f"a message of {size} bytes")
            try:
                self._take(request, outgoing)
            except Exception as error:
                self.faults.append(repr(error))
        outgoing.put_nowait(ConnectionError())

    def _take(
        self, request: session_service_pb2.SessionRequest, outgoing: "asyncio.Queue[Response | Exception]"
    ) -> None:
        match request.WhichOneof("message"):
            case "hello":
                self._greet(request.hello, outgoing)
            case "heartbeat":
                self.heartbeats.append(request.heartbeat)
            case "command_receipt":
                self.receipts.append(request.command_receipt.command_id)
                if request.command_receipt.ticket_gone:
                    self.gone.append(request.command_receipt.command_id)
                self._waiting.pop(request.command_receipt.command_id, None)
            case "events":
                self._store(request.events, outgoing)
            case "progress":
                self.progress.append(request.progress)
            case "logs":
                self.log_lines.extend(request.logs.lines)
            case "inventory":
                self.inventories.append(request.inventory)
            case "lease_check":
                self._judge(request.lease_check, outgoing)
            case None:
                self.faults.append("an empty message")

    def _greet(self, hello: session_service_pb2.Hello, outgoing: "asyncio.Queue[Response | Exception]") -> None:
        self.hellos.append(hello)
        welcome = session_service_pb2.Welcome(
            session_id=f"session-{len(self.hellos)}",
            stored_sequence=self.stored[hello.journal_id],
            installation_id="installation",
            controller_version="0",
            protocol_version=1,
        )
        welcome.heartbeat_interval.FromMilliseconds(int(self.heartbeat_seconds * 1000))
        for operation in hello.operations:
            verdict = self.verdicts.get(operation.job_id, session_service_pb2.VERDICT_KEEP)
            welcome.verdicts.add(job_id=operation.job_id, attempt=operation.attempt, verdict=verdict)
        outgoing.put_nowait(Response(welcome=welcome))
        for command in self._waiting.values():
            if command.command_id not in hello.command_ids:
                outgoing.put_nowait(Response(command=command))

    def _store(self, batch: event_pb2.EventBatch, outgoing: "asyncio.Queue[Response | Exception]") -> None:
        for event in batch.events:
            expected = self.stored[batch.journal_id] + 1
            if event.sequence > expected:
                self.faults.append(f"event {event.sequence} came where {expected} was expected")
            if event.sequence == expected:
                self.stored[batch.journal_id] = expected
                self.events.append(event)
        if self.acknowledge:
            receipt = event_pb2.EventReceipt(journal_id=batch.journal_id, sequence=self.stored[batch.journal_id])
            outgoing.put_nowait(Response(event_receipt=receipt))

    def _judge(self, check: session_service_pb2.LeaseCheck, outgoing: "asyncio.Queue[Response | Exception]") -> None:
        self.lease_checks.append(check)
        if self.lease_held is not None:
            verdict = session_service_pb2.LeaseVerdict(job_id=check.job_id, attempt=check.attempt, held=self.lease_held)
            outgoing.put_nowait(Response(lease_verdict=verdict))

    def sign(self, request: str) -> str:
        """Return a client certificate for a certificate request."""
        wanted = x509.load_pem_x509_csr(request.encode())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hypervisor-1")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.authority.certificate.subject)
            .public_key(wanted.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=1))
            .not_valid_after(now + self.certificate_life)
            .sign(self.authority.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


class _Sessions(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, controller: ScriptedController) -> None:
        self._controller = controller

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802 - writes by itself; the RPC's name
        await self._controller.serve(request_iterator, context)

    async def RenewCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        self._controller.renewals += 1
        return session_service_pb2.RenewCertificateResponse(
            certificate=self._controller.sign(request.certificate_request), authority=self._controller.authority.pem
        )


class _Enrollments(enrollment_service_pb2_grpc.EnrollmentServiceServicer):
    def __init__(self, controller: ScriptedController) -> None:
        self._controller = controller

    async def Enroll(self, request: Any, context: Any) -> Any:  # noqa: N802 - the RPC's name
        if request.token != self._controller.token:
            context.set_trailing_metadata((("backupmanager-reason", "ENROLLMENT_TOKEN_INVALID"),))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is unknown, used or expired")
        return enrollment_service_pb2.EnrollResponse(
            hypervisor_id="hypervisor-1",
            certificate=self._controller.sign(request.certificate_request),
            authority=self._controller.authority.pem,
            session_port=self._controller.session_port,
            installation_id="installation",
        )
