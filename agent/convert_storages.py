"""A storage's access, as a command brings it, as the engine's settings of it: type, place, and the secrets that open it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.errors import CommandUnsupported
from clients.gen.backupmanager.agent.v1.command_pb2 import StorageAccess
from clients.gen.backupmanager.v1 import storage_pb2
from engine import spec

if TYPE_CHECKING:
    from agent.config import Config

SSH_PORT, FTP_PORT = 22, 21
S3_CONCURRENCY, RCLONE_CONCURRENCY = 8, 4
REGION = "us-east-1"

_ADDRESSINGS: dict[int, spec.S3Addressing] = {
    storage_pb2.S3_ADDRESSING_UNSPECIFIED: "auto",
    storage_pb2.S3_ADDRESSING_PATH: "path",
    storage_pb2.S3_ADDRESSING_VIRTUAL: "virtual",
}
_TLS_VERSIONS: dict[int, spec.TlsVersion] = {
    storage_pb2.FTP_TLS_VERSION_UNSPECIFIED: "1.3",
    storage_pb2.FTP_TLS_VERSION_1_2: "1.2",
    storage_pb2.FTP_TLS_VERSION_1_3: "1.3",
}


def storage_spec(access: StorageAccess, config: "Config") -> spec.StorageSpec:
    """Return what the engine gets of a storage; `config` says where this host has what is not the controller's to know.

    Raises CommandUnsupported for a type that a newer controller has.
    """
    return spec.StorageSpec(
        repository_id=access.repository_id,
        installation_id=access.installation_id,
        wrapped_keys=dict(access.wrapped_keys),
        key_id=access.key_id,
        initialized=access.repository_expected,
        **_config(access, config),
    )


def _local(access: StorageAccess, _config: "Config") -> spec.LocalConfig:
    return spec.LocalConfig(access.local.path)


def _sftp(access: StorageAccess, _config: "Config") -> spec.SftpConfig:
    given = access.sftp
    return spec.SftpConfig(
        host=given.host,
        username=given.username,
        path=given.path,
        private_key=access.sftp_private_key,
        port=given.port or SSH_PORT,
        key_passphrase=access.sftp_key_passphrase,
        host_key=given.host_key,
        bind_address=given.bind_address,
    )


def _s3(access: StorageAccess, _config: "Config") -> spec.S3Config:
    given = access.s3
    if given.addressing not in _ADDRESSINGS:
        raise CommandUnsupported(what=f"addressing {given.addressing} of a bucket")
    return spec.S3Config(
        bucket=given.bucket,
        region=given.region or REGION,
        access_key=given.access_key,
        secret_key=access.s3_secret_key,
        endpoint=given.endpoint,
        prefix=given.prefix,
        concurrency=given.concurrency or S3_CONCURRENCY,
        part_size_bytes=given.part_size_bytes,
        addressing=_ADDRESSINGS[given.addressing],
        ca_certificate=given.ca_certificate,
        bind_address=given.bind_address,
    )


def _ftp(access: StorageAccess, _config: "Config") -> spec.FtpConfig:
    given = access.ftp
    if given.tls_version_max not in _TLS_VERSIONS:
        raise CommandUnsupported(what=f"TLS version {given.tls_version_max}")
    return spec.FtpConfig(
        host=given.host,
        username=given.username,
        path=given.path,
        password=access.ftp_password,
        port=given.port or FTP_PORT,
        tls_disabled=given.tls_disabled,
        tls_version_max=_TLS_VERSIONS[given.tls_version_max],
        skip_tls_verify=given.skip_tls_verify,
        ca_certificate=given.ca_certificate,
        bind_address=given.bind_address,
    )


def _rclone(access: StorageAccess, config: "Config") -> spec.RcloneConfig:
    given = access.rclone
    return spec.RcloneConfig(
        remote=given.remote,
        path=given.path,
        config_path=str(config.rclone_config_file),
        s3_concurrency=given.s3_concurrency or RCLONE_CONCURRENCY,
        force=given.force,
        bind_address=given.bind_address,
    )


# By the name of the type, which is the name of its field in the access and in the spec.
_CONFIGS: dict[str, Callable[[StorageAccess, "Config"], Any]] = {
    "local": _local,
    "sftp": _sftp,
    "s3": _s3,
    "ftp": _ftp,
    "rclone": _rclone,
}


def _config(access: StorageAccess, config: "Config") -> dict[str, Any]:
    kind = access.WhichOneof("config")
    if kind is None:
        raise CommandUnsupported(what="this type of storage")
    return {kind: _CONFIGS[kind](access, config)}
