"""The agents' side: their stream, and the renewal of their certificates. The work is done in `controller/agents/`."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from clients.gen.backupmanager.agent.v1 import session_service_pb2 as messages
from clients.gen.backupmanager.agent.v1 import session_service_pb2_grpc
from controller.agents import enrollment
from controller.security.authority import ClientCertificate
from controller.security.caller import current_caller
from controller.services import convert
from controller.services.parts import Context, Parts


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def Session(
        self, request_iterator: AsyncIterator[messages.SessionRequest], context: Context
    ) -> AsyncIterator[messages.SessionResponse]:
        caller = current_caller()
        served = self._parts.sessions.serve(caller.hypervisor_id, caller.certificate_serial, request_iterator)
        async with aclosing(served) as responses:
            async for response in responses:
                yield response

    async def RenewCertificate(
        self, request: messages.RenewCertificateRequest, context: Context
    ) -> messages.RenewCertificateResponse:
        caller, now = current_caller(), self._parts.now()

        def sign(hypervisor_id: str) -> ClientCertificate:
            return self._parts.authority.sign_client(request.certificate_request, hypervisor_id, now)

        made = await self._parts.database.run(
            enrollment.renew, caller.hypervisor_id, caller.certificate_serial, sign, now
        )
        return messages.RenewCertificateResponse(
            certificate=made.certificate,
            authority=self._parts.authority.roots_pem.decode(),
            expire_time=convert.time(made.expire_time),
        )
