"""How an agent gets its first certificate: on the public port, since it has none to show yet."""

from clients.gen.backupmanager.agent.v1 import enrollment_service_pb2 as messages
from clients.gen.backupmanager.agent.v1 import enrollment_service_pb2_grpc
from controller.agents import enrollment
from controller.errors import EnrollmentTokenInvalid, Unauthenticated
from controller.security.authority import ClientCertificate
from controller.services import check, convert
from controller.services.parts import Context, Parts

_SECRET_CHARACTERS_MAX = 256


class EnrollmentServicer(enrollment_service_pb2_grpc.EnrollmentServiceServicer):
    """`session_port` is the agents' port, known once it is open."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.session_port = 0

    async def Enroll(self, request: messages.EnrollRequest, context: Context) -> messages.EnrollResponse:
        if not 0 < len(request.token) <= _SECRET_CHARACTERS_MAX:
            raise EnrollmentTokenInvalid
        agent_version = check.title("agent_version", request.agent_version)
        now = self._parts.now()

        def sign(hypervisor_id: str) -> ClientCertificate:
            return self._parts.authority.sign_client(request.certificate_request, hypervisor_id, now)

        hypervisor_id, made = await self._parts.database.run(enrollment.redeem, request.token, agent_version, sign, now)
        # One that was enrolled before may be connected with the certificate that has just been replaced.
        self._parts.sessions.end(hypervisor_id, Unauthenticated(problem="the certificate was replaced by a newer one"))
        return messages.EnrollResponse(
            hypervisor_id=hypervisor_id,
            certificate=made.certificate,
            authority=self._parts.authority.roots_pem.decode(),
            expire_time=convert.time(made.expire_time),
            session_port=self.session_port,
            installation_id=self._parts.installation.installation_id,
        )
