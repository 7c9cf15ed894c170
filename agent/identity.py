"""Who this agent is: one file (0600) with its key, its certificate, whom it trusts and where it dials.

All of it is in one file so that it is replaced in one step: there is never a key without its certificate.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import CertificateExpired, CertificateUnusable, NotEnrolled
from agent.files import make_folder, write_whole
from clients.connect import ClientCertificate


@dataclass(frozen=True, slots=True)
class Identity:
    """`address` is HOST:PORT of the controller's port for sessions; keys and certificates are PEM."""

    hypervisor_id: str
    installation_id: str
    address: str
    authority: str
    certificate: str
    key: str = field(repr=False)

    @property
    def client_certificate(self) -> ClientCertificate:
        return ClientCertificate(self.key.encode(), self.certificate.encode())

    @property
    def begin_time(self) -> datetime:
        return _certificate(self.certificate).not_valid_before_utc

    @property
    def expire_time(self) -> datetime:
        return _certificate(self.certificate).not_valid_after_utc

    @property
    def renew_time(self) -> datetime:
        """When two thirds of the certificate's life are over."""
        return self.begin_time + (self.expire_time - self.begin_time) * 2 / 3

    def check(self, now: datetime) -> None:
        """Raise CertificateExpired when nobody would accept the certificate any more.

        Checked here because a TLS refusal looks like a controller that is down.
        """
        if now >= self.expire_time:
            raise CertificateExpired(expire_time=self.expire_time.astimezone(UTC).isoformat())

    def renewed(self, key: str, certificate: str, authority: str) -> "Identity":
        """Return the identity with a new certificate, checked. Raises CertificateUnusable."""
        check_pair(key, certificate, authority)
        return replace(self, key=key, certificate=certificate, authority=authority)


def load(path: Path) -> Identity:
    """Return the identity in a file. Raises NotEnrolled."""
    try:
        data = json.loads(path.read_bytes())
        identity = Identity(**{one.name: str(data[one.name]) for one in fields(Identity)})
        _certificate(identity.certificate)
        return identity
    except FileNotFoundError:
        raise NotEnrolled(path=path, problem="is not there") from None
    except OSError as error:
        raise NotEnrolled(path=path, problem=error.strerror or "cannot be read") from error
    except (ValueError, KeyError, TypeError, CertificateUnusable):
        raise NotEnrolled(path=path, problem="is damaged") from None  # the cause could quote the key


def save(identity: Identity, path: Path) -> None:
    """Store an identity in one durable step."""
    make_folder(path.parent)
    write_whole(path, json.dumps(asdict(identity)).encode())


def make_request() -> tuple[str, str]:
    """Return a new private key and a certificate request for it, both PEM. The key never leaves this host."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "agent")]
    )  # the controller puts the hypervisor's id there
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem.decode(), request.public_bytes(serialization.Encoding.PEM).decode()


def check_pair(key: str, certificate: str, authority: str) -> None:
    """Raise CertificateUnusable unless the certificate is the key's, and there is an authority to trust."""
    own = _certificate(certificate)
    _certificate(authority)
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    private = serialization.load_pem_private_key(key.encode(), None)
    if private.public_key().public_bytes(encoding, form) != own.public_key().public_bytes(encoding, form):
        raise CertificateUnusable(problem="it is for another key")
    if own.not_valid_after_utc - own.not_valid_before_utc <= timedelta(0):
        raise CertificateUnusable(problem="it is valid at no time")


def _certificate(text: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateUnusable(problem="a certificate cannot be read") from None
