"""How a hypervisor becomes ours: one-time token in, certificate out, bound to an id that is never reused (N3).

    create_token ──► bm1.<secret, CA fingerprint> ──► redeem ──► hypervisor + certificate serial ──► renew … ──► renew
Tokens are kept as hashes: 32 random bytes need no slow hash. Making one for a name takes earlier ones for it away. Signing
happens inside the transaction, so a request that cannot be signed uses no token up.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from controller import happenings, hypervisors
from controller.db import models
from controller.db.statements import find_row, statement
from controller.errors import (
    EnrollmentTokenInvalid,
    HypervisorBanned,
    HypervisorExists,
    HypervisorNotFound,
    InvalidField,
)
from engine.ids import new_id

PREFIX = "bm1."
SECRET_BYTES = 32
LIFETIME = timedelta(hours=1)
LIFETIME_MAX = timedelta(days=7)
_Token, _Hypervisor = models.EnrollmentToken, models.Hypervisor


class Certificate(Protocol):
    """What a signer returns, as far as it matters here."""

    @property
    def serial(self) -> str: ...

    @property
    def expire_time(self) -> datetime: ...


C = TypeVar("C", bound=Certificate)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, shown this once, and the id that its hypervisor will have."""

    token: str = field(repr=False)
    expire_time: datetime
    hypervisor_id: str


def create_token(
    name: str, lifetime: timedelta | None, renew: bool, authority_fingerprint: str, now: datetime
) -> NewToken:
    """Make a token for a hypervisor's name; `renew` enrolls one again that exists. No lifetime means an hour.

    Raises HypervisorExists, HypervisorNotFound (renew of none), InvalidField.
    """
    lifetime = LIFETIME if lifetime is None else lifetime
    if not timedelta(0) < lifetime <= LIFETIME_MAX:
        raise InvalidField(field="lifetime", problem="must be more than nothing, and at most 7 days")
    row = find_row(_Hypervisor.name, name)
    if row is not None and not renew:
        raise HypervisorExists(name=name)
    if row is None and renew:
        raise HypervisorNotFound(hypervisor_id=name)
    _Token.delete().where((_Token.name == name) & _Token.use_time.is_null()).execute()
    secret = secrets.token_urlsafe(SECRET_BYTES)
    expire_time = now + lifetime
    hypervisor_id = row.hypervisor_id if row is not None else new_id(now)
    _Token.insert(
        token_hash=_hash(secret),
        hypervisor_id=hypervisor_id,
        name=name,
        renew=renew,
        create_time=now,
        expire_time=expire_time,
    ).execute()
    happenings.record("hypervisor.invited", now, hypervisor_id=hypervisor_id, body={"name": name})
    body = json.dumps({"secret": secret, "ca": authority_fingerprint}, separators=(",", ":"))
    token = PREFIX + base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")
    return NewToken(token, expire_time, hypervisor_id)


def redeem(secret: str, agent_version: str, sign: Callable[[str], C], now: datetime) -> tuple[str, C]:
    """Use a token up and return the hypervisor's id and its certificate; `sign` makes it for the id.

    Raises EnrollmentTokenInvalid, HypervisorBanned (a ban survives a new token), and what `sign` raises.
    """
    used = (
        _Token.update(use_time=now)
        .where((_Token.token_hash == _hash(secret)) & _Token.use_time.is_null() & (_Token.expire_time > now))
        .returning(_Token.hypervisor_id, _Token.name, _Token.renew)
        .execute()
    )
    tokens = list(used)
    if not tokens:
        raise EnrollmentTokenInvalid
    token = tokens[0]
    row = find_row(_Hypervisor.hypervisor_id, token.hypervisor_id)
    if row is not None and row.banned:
        raise HypervisorBanned(hypervisor_id=token.hypervisor_id)
    certificate = sign(token.hypervisor_id)
    values = {
        "certificate_serial": certificate.serial,
        "pending_serial": "",
        "certificate_expire_time": certificate.expire_time,
        "agent_version": agent_version,
    }
    if row is None:
        _Hypervisor.insert(hypervisor_id=token.hypervisor_id, name=token.name, create_time=now, **values).execute()
    else:
        _Hypervisor.update(**values).where(_Hypervisor.hypervisor_id == token.hypervisor_id).execute()
    happenings.record("hypervisor.enrolled", now, hypervisor_id=token.hypervisor_id)
    return token.hypervisor_id, certificate


def renew(hypervisor_id: str, serial: str, sign: Callable[[str], C], now: datetime) -> C:
    """Return a new certificate for the holder of the present one, which works until the new one is used.

    Raises PermissionDenied, Unauthenticated, and what `sign` raises.
    """
    hypervisors.check_certificate(hypervisor_id, serial)
    certificate = sign(hypervisor_id)
    _Hypervisor.update(
        certificate_serial=serial, pending_serial=certificate.serial, certificate_expire_time=certificate.expire_time
    ).where(_Hypervisor.hypervisor_id == hypervisor_id).execute()
    happenings.record("hypervisor.renewed", now, hypervisor_id=hypervisor_id)
    return certificate


_CONFIRM = """
    UPDATE hypervisor SET certificate_serial = ?, pending_serial = '' WHERE hypervisor_id = ? AND pending_serial = ?
"""


def confirm(hypervisor_id: str, serial: str) -> None:
    """Note that a session began with this certificate: a renewed one replaces the one before from now on."""
    statement(_CONFIRM, serial, hypervisor_id, serial)


def admit(hypervisor_id: str, serial: str) -> None:
    """Let a session begin: its certificate is good, and from now on the hypervisor's own. Raises as `check_certificate` does."""
    hypervisors.check_certificate(hypervisor_id, serial)
    confirm(hypervisor_id, serial)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
