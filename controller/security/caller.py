"""Who is calling: set by the chain once it knows, read by whoever needs the name."""

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from controller.security.permissions import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """A person's or panel's token, a hypervisor's certificate, or nobody in particular (an open method).

    `name` is for the audit and for jobs' `requester`: a token's name, or `hypervisor:<id>`.
    """

    name: str
    scope: Scope | None = None
    access_token_id: str = ""
    server_ids: tuple[str, ...] = ()
    hypervisor_id: str = ""
    certificate_serial: str = ""
    token_time: datetime | None = None  # when the token was made


NOBODY = Caller("")
CALLER: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Return the caller of the RPC that this task serves."""
    return CALLER.get()
