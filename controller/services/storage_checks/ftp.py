"""Settings of an FTP server (S13)."""

from collections.abc import Mapping

from clients.gen.backupmanager.v1 import storage_pb2
from controller.services import check
from controller.services.storage_checks import fields
from controller.services.storage_checks.fields import expect

FTP_PORT = 21
USERNAME_CHARACTERS_MAX = 128
_VERSIONS = {
    storage_pb2.FTP_TLS_VERSION_UNSPECIFIED: "unset",
    storage_pb2.FTP_TLS_VERSION_1_2: "1.2",
    storage_pb2.FTP_TLS_VERSION_1_3: "1.3",
}


def config(given: storage_pb2.FtpConfig) -> storage_pb2.FtpConfig:
    fields.known_enum("ftp.tls_version_max", given.tls_version_max, _VERSIONS)
    certificates = fields.certificates("ftp.ca_certificate", given.ca_certificate)
    _check_tls(given, certificates)
    path = check.path("ftp.path", given.path)
    expect(path.isprintable(), "ftp.path", "holds control characters")
    return storage_pb2.FtpConfig(
        host=fields.host("ftp.host", given.host),
        port=fields.port("ftp.port", given.port, FTP_PORT),
        username=_username(given.username),
        path=path,
        tls_version_max=given.tls_version_max,
        tls_disabled=given.tls_disabled,
        skip_tls_verify=given.skip_tls_verify,
        ca_certificate=certificates,
        bind_address=fields.bind_address("ftp.bind_address", given.bind_address),
    )


def secrets(known: Mapping[str, str]) -> None:
    fields.secret("secrets.ftp_password", known.get("ftp_password", ""))


def _check_tls(given: storage_pb2.FtpConfig, certificates: str) -> None:
    """Refuse what contradicts itself: who gives a certificate believes that it is looked at."""
    expect(not (certificates and given.skip_tls_verify), "ftp.ca_certificate", "is not looked at with skip_tls_verify")
    if given.tls_disabled:
        expect(not certificates, "ftp.ca_certificate", "is not used without TLS")
        expect(not given.skip_tls_verify, "ftp.skip_tls_verify", "means nothing without TLS")
        expect(not given.tls_version_max, "ftp.tls_version_max", "means nothing without TLS")


def _username(text: str) -> str:
    fits = 0 < len(text) <= USERNAME_CHARACTERS_MAX and text.isprintable() and text == text.strip()
    expect(fits, "ftp.username", f"must be 1 to {USERNAME_CHARACTERS_MAX} characters in one line")
    return text
