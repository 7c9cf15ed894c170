"""Hypervisors: enrolling them, seeing them, banning them."""

from datetime import datetime, timedelta

from clients.gen.backupmanager.v1 import hypervisor_service_pb2 as messages
from clients.gen.backupmanager.v1 import hypervisor_service_pb2_grpc
from controller import hypervisors
from controller.agents import enrollment
from controller.errors import PermissionDenied
from controller.hypervisors import Domain, Hypervisor
from controller.limits import Limits
from controller.services import check, convert, convert_hosts, paging
from controller.services.parts import Context, Parts

_TOKEN_LIFETIME = timedelta(hours=1)
_TOKEN_LIFETIME_MAX = timedelta(days=7)


class HypervisorServicer(hypervisor_service_pb2_grpc.HypervisorServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateEnrollmentToken(
        self, request: messages.CreateEnrollmentTokenRequest, context: Context
    ) -> messages.CreateEnrollmentTokenResponse:
        lifetime = check.span(request, "lifetime", _TOKEN_LIFETIME, timedelta(seconds=1), _TOKEN_LIFETIME_MAX)
        made = await self._parts.database.run(
            enrollment.create_token,
            check.name("name", request.name),
            lifetime,
            request.renew,
            self._parts.authority.fingerprint,
            self._parts.now(),
        )
        return messages.CreateEnrollmentTokenResponse(
            token=made.token, expire_time=convert.time(made.expire_time), hypervisor_id=made.hypervisor_id
        )

    async def ListHypervisors(
        self, request: messages.ListHypervisorsRequest, context: Context
    ) -> messages.ListHypervisorsResponse:
        page = paging.page("hypervisors", (), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(
            hypervisors.list_hypervisors, self._parts.limits, self._parts.now(), after=page.after, limit=page.size + 1
        )
        filled = paging.fill(page, rows, convert_hosts.hypervisor, lambda row: (row.name,))
        return messages.ListHypervisorsResponse(hypervisors=filled.messages, next_page_token=filled.next_page_token)

    async def GetHypervisor(
        self, request: messages.GetHypervisorRequest, context: Context
    ) -> messages.GetHypervisorResponse:
        record = await self._parts.database.run(
            hypervisors.find,
            check.reference("hypervisor_id", request.hypervisor_id),
            self._parts.limits,
            self._parts.now(),
        )
        return messages.GetHypervisorResponse(hypervisor=convert_hosts.hypervisor(record))

    async def ListDomains(self, request: messages.ListDomainsRequest, context: Context) -> messages.ListDomainsResponse:
        reference = check.reference("hypervisor_id", request.hypervisor_id)
        page = paging.page("domains", (reference,), request.page_size, request.page_token, (str, str))
        rows, report_time = await self._parts.database.run(
            _domains, reference, self._parts.limits, self._parts.now(), page.after, page.size + 1
        )
        filled = paging.fill(page, rows, convert_hosts.domain, lambda row: (row.name, row.domain_uuid))
        return messages.ListDomainsResponse(
            domains=filled.messages, next_page_token=filled.next_page_token, report_time=convert.time(report_time)
        )

    async def BanHypervisor(
        self, request: messages.BanHypervisorRequest, context: Context
    ) -> messages.BanHypervisorResponse:
        reference = check.reference("hypervisor_id", request.hypervisor_id)
        record = await self._parts.database.run(_ban, reference, self._parts.limits, self._parts.now())
        self._parts.sessions.end(record.hypervisor_id, PermissionDenied(problem="this hypervisor is banned"))
        return messages.BanHypervisorResponse(hypervisor=convert_hosts.hypervisor(record))

    async def UnbanHypervisor(
        self, request: messages.UnbanHypervisorRequest, context: Context
    ) -> messages.UnbanHypervisorResponse:
        reference = check.reference("hypervisor_id", request.hypervisor_id)
        record = await self._parts.database.run(_unban, reference, self._parts.limits, self._parts.now())
        return messages.UnbanHypervisorResponse(hypervisor=convert_hosts.hypervisor(record))


def _domains(
    reference: str, limits: Limits, now: datetime, after: tuple[str, str] | None, limit: int
) -> tuple[list[Domain], datetime | None]:
    hypervisor_id = hypervisors.find(reference, limits, now).hypervisor_id
    rows = hypervisors.list_domains(hypervisor_id, after=after, limit=limit)
    return rows, hypervisors.inventory_time(hypervisor_id)


def _ban(reference: str, limits: Limits, now: datetime) -> Hypervisor:
    hypervisor_id = hypervisors.find(reference, limits, now).hypervisor_id
    hypervisors.ban(hypervisor_id, now)
    return hypervisors.find(hypervisor_id, limits, now)


def _unban(reference: str, limits: Limits, now: datetime) -> Hypervisor:
    hypervisor_id = hypervisors.find(reference, limits, now).hypervisor_id
    hypervisors.unban(hypervisor_id, now)
    return hypervisors.find(hypervisor_id, limits, now)
