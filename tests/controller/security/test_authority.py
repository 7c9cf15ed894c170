"""The authority: certificates that TLS really accepts and refuses, renewal, overlapping roots, keys that nobody else reads."""

import asyncio
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.errors import InvalidField
from controller.security.authority import (
    CLIENT_LIFETIME,
    ROOT_SETTLING,
    SERVER_LIFETIME,
    SERVER_NAME,
    Authority,
    common_name,
    serial_number,
)
from engine import ids

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def request(key: object = None, subject: str = "someone else") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)  # type: ignore[arg-type]
    return made.public_bytes(serialization.Encoding.PEM).decode()


def parsed(pem: bytes | str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)


async def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """Connect over loopback and return what the client reads; TLS errors come out as they are."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=SERVER_NAME)
        try:
            return await reader.read(5)
        finally:
            writer.close()


def server_context(authority: Authority, folder: Path) -> ssl.SSLContext:
    (folder / "k").write_bytes(authority.server_pair.key)
    (folder / "c").write_bytes(authority.server_pair.chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c", folder / "k")
    return context


@pytest.mark.feature("N3")
def test_a_new_authority_is_a_root_of_ten_years_and_a_server_certificate_of_397_days(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", ("backup.example.org", "192.0.2.7"), NOW)
    root, leaf = parsed(authority.roots_pem), parsed(authority.server_pair.chain)
    assert root.not_valid_after_utc - NOW > timedelta(days=3650)
    assert root.fingerprint(hashes.SHA256()).hex() == authority.fingerprint
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.not_valid_after_utc == NOW + SERVER_LIFETIME
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME, "backup.example.org"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert x509.load_pem_x509_certificates(authority.server_pair.chain)[1] == root


@pytest.mark.feature("N3")
def test_keys_are_closed_to_others(tmp_path: Path) -> None:
    Authority.create(tmp_path / "authority", (), NOW)
    assert stat.S_IMODE((tmp_path / "authority").stat().st_mode) == 0o700
    keys = list((tmp_path / "authority").glob("*.key"))
    assert len(keys) == 2
    assert {stat.S_IMODE(one.stat().st_mode) for one in keys} == {0o600}


@pytest.mark.feature("N3")
def test_a_second_authority_never_replaces_the_first(tmp_path: Path) -> None:
    first = Authority.create(tmp_path, (), NOW)
    with pytest.raises(FileExistsError):
        Authority.create(tmp_path, (), NOW)
    assert Authority.load(tmp_path, (), NOW).fingerprint == first.fingerprint


@pytest.mark.feature("N3")
def test_the_server_certificate_is_kept_while_it_fits_and_renewed_at_two_thirds(tmp_path: Path) -> None:
    first = Authority.create(tmp_path, (), NOW)
    assert Authority.load(tmp_path, (), NOW + 200 * DAY).server_pair == first.server_pair
    assert not first.maintain(NOW + 200 * DAY)
    later = NOW + 265 * DAY
    assert first.maintain(later)
    assert first.server_expire_time == later + SERVER_LIFETIME
    assert first.version == 2
    assert Authority.load(tmp_path, (), later).server_pair == first.server_pair


@pytest.mark.feature("N3")
def test_another_host_name_makes_another_server_certificate(tmp_path: Path) -> None:
    first = Authority.create(tmp_path, (), NOW)
    second = Authority.load(tmp_path, ("other.example.org",), NOW)
    assert second.server_pair != first.server_pair
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["server.key", "server.crt"])
def test_a_server_certificate_cut_short_by_a_crash_is_made_anew(tmp_path: Path, damage: str) -> None:
    Authority.create(tmp_path, (), NOW)
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:60])
    again = Authority.load(tmp_path, (), NOW)
    assert ssl.create_default_context(cadata=again.roots_pem.decode())
    assert server_context(again, tmp_path)


def test_a_damaged_root_is_never_replaced_in_silence(tmp_path: Path) -> None:
    Authority.create(tmp_path, (), NOW)
    root = next(tmp_path.glob("root-*.key"))
    root.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ValueError, match="do not belong together"):
        Authority.load(tmp_path, (), NOW)


@pytest.mark.feature("N3")
def test_two_roots_overlap_until_every_agent_trusts_the_newer(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, (), NOW)
    first = authority.fingerprint
    late = NOW + timedelta(days=3653 - 700)
    authority.maintain(late)
    assert len(x509.load_pem_x509_certificates(authority.roots_pem)) == 2
    assert authority.fingerprint == first, "agents do not know the new root yet"
    assert ROOT_SETTLING >= 2 * CLIENT_LIFETIME
    authority.maintain(late + ROOT_SETTLING)
    assert authority.fingerprint != first
    parsed(authority.server_pair.chain).verify_directly_issued_by(
        x509.load_pem_x509_certificates(authority.roots_pem)[1]
    )
    authority.maintain(NOW + timedelta(days=3660))
    assert len(x509.load_pem_x509_certificates(authority.roots_pem)) == 1, "the old root has ended"


@pytest.mark.feature("N3")
def test_a_client_certificate_is_bound_to_the_hypervisor_whatever_the_request_says(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, (), NOW)
    hypervisor_id = ids.new_id(NOW)
    made = authority.sign_client(request(subject=ids.new_id(NOW)), hypervisor_id, NOW)
    certificate = parsed(made.certificate)
    assert common_name(made.certificate.encode()) == hypervisor_id
    assert serial_number(made.certificate.encode()) == made.serial
    assert made.expire_time == certificate.not_valid_after_utc == NOW + CLIENT_LIFETIME
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["rsa", "p384"]
)
def test_other_sound_keys_are_accepted(tmp_path: Path, key: object) -> None:
    assert Authority.create(tmp_path, (), NOW).sign_client(request(key), ids.new_id(NOW), NOW)


def damaged_signature() -> str:
    der = bytearray(ssl.PEM_cert_to_DER_cert(request().replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    der[-1] ^= 1
    return ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * (17 << 10),
        request(rsa.generate_private_key(65537, 1024)),
        request(ec.generate_private_key(ec.SECP256K1())),
        request(ed25519.Ed25519PrivateKey.generate()),
        damaged_signature(),
    ],
    ids=["empty", "garbage", "hollow", "long", "rsa1024", "koblitz", "ed25519", "signature"],
)
def test_a_bad_request_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        Authority.create(tmp_path, (), NOW).sign_client(text, ids.new_id(NOW), NOW)
    assert refusal.value.facts["field"] == "certificate_request"


@pytest.mark.feature("N3")
async def test_tls_accepts_our_server_and_refuses_a_client_certificate_in_its_place(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority.create(tmp_path / "authority", (), now)
    client = ssl.create_default_context(cadata=authority.roots_pem.decode())
    assert await shake_hands(server_context(authority, tmp_path), client) == b"hello"

    key = ec.generate_private_key(ec.SECP256R1())
    stolen = authority.sign_client(request(key), SERVER_NAME, now)
    (tmp_path / "k").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "c").write_text(stolen.certificate)
    pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pretender.load_cert_chain(tmp_path / "c", tmp_path / "k")
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake_hands(pretender, client)
