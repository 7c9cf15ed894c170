"""A certificate for 127.0.0.1, 127.0.0.2, ::1 and localhost that signs itself: what a test server shows, and what a client is told to trust."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """`pem` is public. The files are below the folder that it was made in."""

    pem: str
    certificate_path: Path
    key_path: Path


def make_certificate(folder: Path, *, expired: bool = False, names: tuple[str, ...] = ("localhost",)) -> Certificate:
    """Make a certificate, and write it and its key below `folder`; `expired`: since yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    addresses = (
        [ipaddress.ip_address(one) for one in ("127.0.0.1", "127.0.0.2", "::1")] if names == ("localhost",) else []
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * _DAY)
        .not_valid_after(now - _DAY if expired else now + 10 * _DAY)
        .add_extension(
            x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    made = Certificate(pem, folder / "certificate.pem", folder / "certificate.key")
    made.certificate_path.write_text(pem)
    made.key_path.touch(mode=0o600)
    made.key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made
