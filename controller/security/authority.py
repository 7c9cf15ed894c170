"""The controller's own certificate authority.

    <state>/authority/root-<fingerprint>.crt, .key     a root, P-256, ten years; two may overlap
                      server.crt, server.key           our certificate (leaf, then its root), replaced at two thirds of its life

Roots replace each other without a flag day. Two years before the newest root ends, another is made: from then on every
agent gets both in its bundle, since agents renew within 90 days. It signs only once it is 180 days old, when no agent is
left that does not trust it. What is done is a function of the roots and the time alone.

Keys are 0600, and written before their certificates. Nothing here logs or returns a private key but `server_pair`.
"""

import ipaddress
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.errors import InvalidField
from controller.files import make_private_folder, write_atomic

SERVER_NAME = "controller.backup-manager"  # the name that our clients ask for, wherever the controller lives
ROOT_LIFETIME = timedelta(days=3653)
SERVER_LIFETIME = timedelta(days=397)  # the most that current TLS clients accept of a server
CLIENT_LIFETIME = timedelta(days=90)
ROOT_SUCCESSION = timedelta(days=730)
ROOT_SETTLING = timedelta(days=180)  # twice a client certificate's life: every agent has renewed since
BACKDATE = timedelta(hours=1)  # hosts whose clock is behind ours can use a fresh certificate
REQUEST_BYTES_MAX = 16 << 10
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 4096


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate for a hypervisor: PEM, serial number in hexadecimal, and when it ends."""

    certificate: str
    serial: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and the chain that belongs to it, PEM."""

    key: bytes = field(repr=False)
    chain: bytes


@dataclass(frozen=True, slots=True)
class _Root:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


class Authority:
    """An authority in a folder. `maintain` may run beside readers on other threads; one thread at a time runs it."""

    def __init__(self, folder: Path, host_names: tuple[str, ...]) -> None:
        self._folder = folder
        self._host_names = host_names
        self._lock = threading.Lock()
        self._roots: list[_Root] = []
        self._pair = Pair(b"", b"")
        self._signer: _Root
        self.version = 0  # grows when the server's certificate or the roots change

    @classmethod
    def create(cls, folder: Path, host_names: tuple[str, ...], now: datetime) -> "Authority":
        """Make a new authority. Raises FileExistsError when the folder holds one."""
        make_private_folder(folder)
        if any(folder.glob("root-*.crt")):
            raise FileExistsError(folder)
        _save_root(folder, _make_root(now))
        return cls.load(folder, host_names, now)

    @classmethod
    def load(cls, folder: Path, host_names: tuple[str, ...], now: datetime) -> "Authority":
        """Return the authority in a folder, its certificates renewed where due. Raises FileNotFoundError without one."""
        authority = cls(folder, host_names)
        authority.maintain(now)
        return authority

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the signing root's DER, hexadecimal: what a client pins."""
        return self._signer.fingerprint

    @property
    def roots_pem(self) -> bytes:
        """All roots that are trusted now, one after the other."""
        return b"".join(_pem(one.certificate) for one in self._roots)

    @property
    def server_pair(self) -> Pair:
        """Our key, and our certificate followed by its root."""
        return self._pair

    @property
    def server_expire_time(self) -> datetime:
        return x509.load_pem_x509_certificate(self._pair.chain).not_valid_after_utc

    def maintain(self, now: datetime) -> bool:
        """Renew what is due, and tell whether anything changed. Called at start and every hour."""
        roots = [one for one in _load_roots(self._folder) if now < one.certificate.not_valid_after_utc]
        if not roots:
            raise FileNotFoundError(self._folder / "root-*.crt")
        if roots[-1].certificate.not_valid_after_utc - now < ROOT_SUCCESSION:
            roots.append(_make_root(now))
            _save_root(self._folder, roots[-1])
        signer = _signer(roots, now)
        pair = self._load_server(signer, now) or self._make_server(signer, now)
        changed = pair != self._pair or [one.fingerprint for one in roots] != [one.fingerprint for one in self._roots]
        with self._lock:
            self._roots, self._signer, self._pair = roots, signer, pair
            self.version += changed
        return changed

    def snapshot(self) -> tuple[int, Pair, bytes]:
        """Return version, server pair and roots as they belong together. Cheap; any thread."""
        with self._lock:
            return self.version, self._pair, self.roots_pem

    def sign_client(self, request: str, hypervisor_id: str, now: datetime) -> ClientCertificate:
        """Return a client certificate for the key in a PEM request; whatever else the request says is ignored.

        Raises InvalidField when the request is not one, its signature is wrong, or its key is weak or of another kind.
        """
        key = _request_key(request)
        expire_time = (now + CLIENT_LIFETIME).replace(microsecond=0)
        certificate = (
            _builder(hypervisor_id, self._signer.certificate.subject, key, now - BACKDATE, expire_time)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .add_extension(_leaf_usage(), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_issuer(self._signer), critical=False)
            .sign(self._signer.key, hashes.SHA256())
        )
        return ClientCertificate(_pem(certificate).decode(), f"{certificate.serial_number:x}", expire_time)

    def _load_server(self, signer: _Root, now: datetime) -> Pair | None:
        """Return the saved server pair if it can go on being used, else None."""
        try:
            pair = Pair((self._folder / "server.key").read_bytes(), (self._folder / "server.crt").read_bytes())
        except FileNotFoundError:
            return None
        try:
            certificate = x509.load_pem_x509_certificate(pair.chain)
            key = serialization.load_pem_private_key(pair.key, None)
            certificate.verify_directly_issued_by(signer.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return None  # cut short by a crash, or of an earlier root: a new one is made
        fits = (
            certificate.public_key() == key.public_key()
            and certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == self._names()
            and certificate.not_valid_after_utc - now > SERVER_LIFETIME / 3
        )
        return pair if fits else None

    def _make_server(self, signer: _Root, now: datetime) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(now + SERVER_LIFETIME, signer.certificate.not_valid_after_utc)
        certificate = (
            _builder(SERVER_NAME, signer.certificate.subject, key.public_key(), now - BACKDATE, end)
            .add_extension(self._names(), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .add_extension(_leaf_usage(), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_issuer(signer), critical=False)
            .sign(signer.key, hashes.SHA256())
        )
        pair = Pair(_key_pem(key), _pem(certificate) + _pem(signer.certificate))
        write_atomic(self._folder / "server.key", pair.key)
        write_atomic(self._folder / "server.crt", pair.chain, 0o644)
        return pair

    def _names(self) -> x509.SubjectAlternativeName:
        return x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME), *map(_general_name, self._host_names)])


def common_name(certificate_pem: bytes) -> str:
    """Return the common name of a verified client certificate: its hypervisor's id. "" when it has none."""
    names = x509.load_pem_x509_certificate(certificate_pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def serial_number(certificate_pem: bytes) -> str:
    """Return a certificate's serial number in hexadecimal, as `ClientCertificate.serial` has it."""
    return f"{x509.load_pem_x509_certificate(certificate_pem).serial_number:x}"


def read_roots(folder: Path) -> list[tuple[str, datetime]]:
    """Return fingerprint and end of each root in a folder, oldest first, changing nothing. Raises ValueError, OSError."""
    return [(one.fingerprint, one.certificate.not_valid_after_utc) for one in _load_roots(folder)]


# ---- roots --------------------------------------------------------------------------------------------------------------


def _signer(roots: list[_Root], now: datetime) -> _Root:
    """Return the newest root that every agent trusts by now, which is the only one if there is one only."""
    settled = [one for one in roots if now - one.certificate.not_valid_before_utc >= ROOT_SETTLING]
    return settled[-1] if settled else roots[0]


def _make_root(now: datetime) -> _Root:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    key_id = x509.SubjectKeyIdentifier.from_public_key(public)
    subject = f"Backup Manager authority {key_id.digest.hex()[:8]}"  # two roots of one name confuse some clients
    certificate = (
        _builder(subject, _name(subject), public, now - BACKDATE, now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=False, certify=True), critical=True)
        .add_extension(key_id, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Root(certificate, key)


def _save_root(folder: Path, root: _Root) -> None:
    write_atomic(folder / f"root-{root.fingerprint[:16]}.key", _key_pem(root.key))
    write_atomic(folder / f"root-{root.fingerprint[:16]}.crt", _pem(root.certificate), 0o644)


def _load_roots(folder: Path) -> list[_Root]:
    """Return the roots in a folder, oldest first. Raises ValueError for one that is damaged: it is not to be replaced."""
    roots = []
    for path in folder.glob("root-*.crt"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError(f"{path} and its key do not belong together")
        roots.append(_Root(certificate, key))
    return sorted(roots, key=lambda one: (one.certificate.not_valid_before_utc, one.fingerprint))


# ---- certificates ------------------------------------------------------------------------------------------------------


def _request_key(text: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if len(text) > REQUEST_BYTES_MAX:
        raise InvalidField(field="certificate_request", problem=f"is longer than {REQUEST_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        valid, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidField(field="certificate_request", problem="is not a certificate request in PEM") from error
    if not valid:
        raise InvalidField(field="certificate_request", problem="is not signed by its own key")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        return key
    raise InvalidField(
        field="certificate_request", problem="needs a key on P-256 or P-384, or RSA of 2048 to 4096 bits"
    )


def _builder(
    subject: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issuer(signer: _Root) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())


def _leaf_usage() -> x509.KeyUsage:
    return _usage(sign=True, certify=False)


def _usage(*, sign: bool, certify: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=certify,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
