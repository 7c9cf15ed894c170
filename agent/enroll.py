"""`bm-agent enroll`: from a one-time token to a certificate of this hypervisor's own.

token (bm1.…, from a file or stdin) ── fingerprint ──► the authority in the TLS handshake must have it
key made here ── CSR, the token's secret ──► Enroll ──► certificate, authority, port for sessions ──► identity.json
"""

import sys
from pathlib import Path

from agent import identity
from agent.config import Config
from agent.errors import AlreadyEnrolled, NotEnrolled
from agent.identity import Identity
from agent.version import AGENT_VERSION
from clients.connect import channel, fetch_authority, fingerprint_of, parse_enrollment_token, split_address
from clients.errors import AuthorityChanged, translated
from clients.gen.backupmanager.agent.v1 import enrollment_service_pb2, enrollment_service_pb2_grpc
from engine.units import KIB

ENROLL_SECONDS = 30.0


def read_token(place: str) -> str:
    """Return the token's text from a file, or from stdin for `-`. Raises OSError."""
    if place == "-":
        return sys.stdin.read(64 * KIB)
    with Path(place).open(encoding="ascii", errors="replace") as stream:
        return stream.read(64 * KIB)


async def enroll(config: Config, address: str, token_text: str, *, renew: bool) -> Identity:
    """Get a certificate for this hypervisor and store it; return the new identity.

    Raises AlreadyEnrolled (without `renew`), EnrollmentTokenMalformed, ControllerUnreachable, AuthorityChanged, CallRefused
    (ENROLLMENT_TOKEN_INVALID, HYPERVISOR_BANNED), CertificateUnusable.
    """
    known = _known(config)
    if known is not None and not renew:
        raise AlreadyEnrolled(hypervisor_id=known.hypervisor_id)
    token = parse_enrollment_token(token_text)
    authority, _ = fetch_authority(address, expected=token.authority)
    key, request = identity.make_request()
    async with channel(address, authority) as connection:
        stub = enrollment_service_pb2_grpc.EnrollmentServiceStub(connection)
        with translated():
            response = await stub.Enroll(
                enrollment_service_pb2.EnrollRequest(
                    token=token.secret, certificate_request=request, agent_version=AGENT_VERSION
                ),
                timeout=ENROLL_SECONDS,
            )
    roots = response.authority or authority
    identity.check_pair(key, response.certificate, roots)
    if token.authority not in _fingerprints(roots):
        raise AuthorityChanged(address=address, seen=fingerprint_of(roots), expected=token.authority)
    new = Identity(
        hypervisor_id=response.hypervisor_id,
        installation_id=response.installation_id,
        address=_session_address(address, response.session_port),
        authority=roots,
        certificate=response.certificate,
        key=key,
    )
    identity.save(new, config.identity_file)
    return new


def _known(config: Config) -> Identity | None:
    try:
        return identity.load(config.identity_file)
    except NotEnrolled:
        return None


def _session_address(address: str, port: int) -> str:
    """The port for sessions is on the same host; an IPv6 address keeps its brackets."""
    host, _ = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fingerprints(roots: str) -> set[str]:
    """Return the fingerprints of all certificates of a PEM text."""
    end = "-----END CERTIFICATE-----"
    parts = [part + end for part in roots.split(end) if part.strip()]
    return {fingerprint_of(part.strip()) for part in parts}
