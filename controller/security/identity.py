"""Telling callers apart, and listeners with them.

Only the agents' listener asks for a client certificate, so a visible certificate says which listener a call came in by: a
service that belongs to the other one is refused before anything else. A ban is looked up here and not left to TLS, whose
refusal would reach the agent as "cannot connect" and tell it nothing.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from controller import hypervisors
from controller.clock import Clock
from controller.db.database import Database
from controller.errors import PermissionDenied, Unauthenticated
from controller.security import tokens
from controller.security.authority import common_name, serial_number
from controller.security.caller import NOBODY, Caller
from controller.security.permissions import Rule

if TYPE_CHECKING:
    from grpc import aio

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
_BEARER = "bearer "


class Identity:
    """Says who makes a call."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of(self, context: Context, rule: Rule) -> Caller:
        """Return the caller of an RPC whose method has this rule.

        Raises Unauthenticated for no or no good token or certificate, PermissionDenied for a banned hypervisor and for a
        service that does not answer on this listener.
        """
        certificate = _certificate(context)
        if rule.demand == "certificate":
            if not certificate:
                raise Unauthenticated(problem="this service answers on the agents' port, to a client certificate")
            return await self._hypervisor(certificate)
        if certificate:
            raise PermissionDenied(problem="this service does not answer on the agents' port")
        if rule.demand == "open":
            return NOBODY
        return await self._database.run(tokens.authenticate, _secret(context), self._clock.now())

    async def _hypervisor(self, certificate: bytes) -> Caller:
        hypervisor_id, serial = common_name(certificate), serial_number(certificate)
        await self._database.run(hypervisors.check_certificate, hypervisor_id, serial)
        return Caller(f"hypervisor:{hypervisor_id}", hypervisor_id=hypervisor_id, certificate_serial=serial)


def _certificate(context: Context) -> bytes:
    return next(iter(context.auth_context().get("x509_pem_cert", ())), b"")


def _secret(context: Context) -> str:
    """Return the bearer token of a call, "" when there is none or more than one."""
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_BEARER):
        return ""
    return values[0][len(_BEARER) :].strip()
