"""The way to the controller: dial, serve a session, wait, dial again. It never ends by itself.

Several controllers may share an installation: after each session that ended, or did not come about, the next one is dialed.

A new dial reads the identity anew, so that a renewed or newly enrolled certificate is used without a restart. The certificate
is renewed over the session's own channel when two thirds of its life are over.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from grpc import aio

from agent import identity
from agent.backoff import Backoff
from agent.commands import Commands
from agent.errors import CertificateExpired, CertificateUnusable, NotEnrolled, SessionEnded
from agent.host import Host
from agent.identity import Identity
from agent.inventory import Inventory
from agent.records import Operation
from agent.session import Session
from agent.supervisor import Supervisor
from agent.vitals import FreeRoom
from clients.connect import channel
from clients.errors import CallRefused, refusal, translated
from clients.gen.backupmanager.agent.v1 import session_service_pb2, session_service_pb2_grpc

if TYPE_CHECKING:
    from clients.gen.backupmanager.agent.v1.session_service_pb2_grpc import SessionServiceStub

log = logging.getLogger(__name__)

RENEW_SECONDS = 30.0
RENEW_RETRY_SECONDS_MIN, RENEW_RETRY_SECONDS_MAX = 10.0, 3600.0
LOOK_SECONDS = 2.0


class Link:
    """Belongs to the event loop. Give it its parts with `serve`, then `run` it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turn = 0  # which of the controllers is dialed
        self._session: Session | None = None
        self._backoff = Backoff()
        self._room = FreeRoom(host.config.scratch_folder)

    async def check_lease(self, operation: Operation) -> bool | None:
        """Ask the controller whether a job still holds its lease; None while it cannot be asked."""
        return None if self._session is None else await self._session.check_lease(operation)

    async def run(self, supervisor: Supervisor, commands: Commands, inventory: Inventory) -> None:
        """Keep a session. Ends only by being cancelled."""
        try:
            await self._room.look(LOOK_SECONDS)
            while True:
                session = Session(self._host, supervisor, commands, inventory, self._room)
                seconds = await self._serve(session)
                await self._pause(seconds)
        finally:
            await self._room.close()

    async def _serve(self, session: Session) -> float:
        """Serve one session; return how long to wait before the next. Says why it ended."""
        try:
            own = identity.load(self._host.config.identity_file)
            own.check(self._host.clock.now())
            await self._dial(session, own)
            reason, detail = "", "it was closed"
        except SessionEnded as error:
            reason, detail = error.reason, str(error)
        except (NotEnrolled, CertificateExpired) as error:
            reason, detail = error.reason, error.message
        except aio.AioRpcError as error:
            refused = refusal(error)
            reason, detail = refused.reason, refused.message
        except Exception as error:
            log.exception("the session failed by a fault of this program")
            reason, detail = "INTERNAL", type(error).__name__
        if session.good:
            self._backoff.reset()
        self._turn += 1  # one that does not answer, stops or has lost its claim is left for the next
        seconds = self._backoff.seconds(reason, detail)
        log.warning("no session reason=%s detail=%s retry_seconds=%.1f", reason, detail, seconds)
        return seconds

    async def _dial(self, session: Session, own: Identity) -> None:
        addresses = list(dict.fromkeys((own.address, *self._host.config.controllers)))
        address = addresses[self._turn % len(addresses)]
        async with channel(address, own.authority, certificate=own.client_certificate) as connection:
            stub = session_service_pb2_grpc.SessionServiceStub(connection)
            renewal = asyncio.create_task(self._renew_in_time(session, own, stub))
            self._session = session
            try:
                await session.run(stub)
            finally:
                self._session = None
                renewal.cancel()
                await asyncio.gather(renewal, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        """Wait; a new identity ends the wait."""
        before = self._identity_mark()
        while seconds > 0 and self._identity_mark() == before:
            await asyncio.sleep(min(seconds, LOOK_SECONDS))
            seconds -= LOOK_SECONDS

    def _identity_mark(self) -> tuple[int, int] | None:
        try:
            status = self._host.config.identity_file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    # ---- renewal -------------------------------------------------------------------------------------------------------

    async def _renew_in_time(self, session: Session, own: Identity, stub: "SessionServiceStub") -> None:
        """Renew the certificate when it is due, then end the session so that the next one uses it."""
        while True:
            now = self._host.clock.now()
            await asyncio.sleep(max(0.0, (own.renew_time - now).total_seconds()))
            try:
                await self._renew(own, stub)
            except (CallRefused, CertificateUnusable, OSError) as error:
                left = (own.expire_time - self._host.clock.now()).total_seconds()
                seconds = min(max(left / 10, RENEW_RETRY_SECONDS_MIN), RENEW_RETRY_SECONDS_MAX)
                log.error(
                    "cannot renew the certificate left_seconds=%.0f retry_seconds=%.0f detail=%s", left, seconds, error
                )
                await asyncio.sleep(seconds)
            else:
                session.end("the certificate was renewed")
                return

    async def _renew(self, own: Identity, stub: "SessionServiceStub") -> None:
        key, request = identity.make_request()
        with translated():
            response = await stub.RenewCertificate(
                session_service_pb2.RenewCertificateRequest(certificate_request=request), timeout=RENEW_SECONDS
            )
        renewed = own.renewed(key, response.certificate, response.authority or own.authority)
        identity.save(renewed, self._host.config.identity_file)
        log.info("renewed the certificate expire_time=%s", renewed.expire_time.isoformat())
