"""The recovery sheet of a storage (N12): plain text of at most 100 columns, made to be printed and put into a safe."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.storage_pb2 import (
        FtpConfig,
        LocalConfig,
        RcloneConfig,
        S3Config,
        SftpConfig,
        Storage,
    )
    from clients.gen.backupmanager.v1.storage_service_pb2 import ExportStorageKeyResponse, WrappedKey

_WIDTH = 80
_RULE = "=" * _WIDTH
_LINE = "-" * _WIDTH


def text(reply: "ExportStorageKeyResponse") -> str:
    """Return the sheet. It never holds a passphrase or an open key, and says so."""
    storage = reply.storage
    parts = [
        _RULE,
        f"BACKUP MANAGER - RECOVERY SHEET OF STORAGE {_shown(storage.name)}",
        _RULE,
        *_facts(reply),
        "",
        *(_encrypted(list(reply.keys)) if reply.keys else _OPEN),
        "",
        "HOW TO RESTORE WITHOUT A CONTROLLER",
        _LINE,
        *_steps(storage, encrypted=bool(reply.keys)),
        _RULE,
    ]
    return "\n".join(parts) + "\n"


def _facts(reply: "ExportStorageKeyResponse") -> list[str]:
    storage = reply.storage
    facts = [
        ("Repository", storage.repository_id),
        ("Place", _shown(_place(storage))),
        ("Host key", _shown(storage.sftp.host_key)),
        ("Storage", storage.storage_id),
        ("Installation", reply.installation_id),
        ("Written", f"{reply.export_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if reply.HasField("export_time") else ""),
    ]
    return [f"{name + ':':<14}{value}" for name, value in facts if value]


_OPEN = ["This storage was never encrypted: restores need no key, only access to the storage."]


def _encrypted(keys: "list[WrappedKey]") -> list[str]:
    lines = [
        "THE KEY",
        _LINE,
        "The key below is closed by the storage's passphrase. Neither the passphrase nor the",
        "open key is on this sheet: keep the passphrase elsewhere. Without it, nobody can",
        "read the backups, and nobody can help. The same key lies on the storage below keys/",
        "and in every encrypted backup; this sheet is for the day when those copies are damaged.",
    ]
    for key in keys:
        lines += ["", f"keys/{key.key_id}.json   (SHA-256 {key.sha256})", "", *key.text.rstrip("\n").split("\n")]
    return lines


def _steps(storage: "Storage", *, encrypted: bool) -> list[str]:
    lines = [
        "1. On a host with Backup Manager's engine, describe the storage in storage.json:",
        *(f"     {line}" for line in _settings(storage)),
        *_certificate(storage),
    ]
    number = 2
    if encrypted:
        lines += [
            "2. Put the passphrase into a file that only root may read, here /root/passphrase.",
            "3. Only if keys/ on the storage is damaged: write the key's text above, both of its",
            "   lines with a line end each, into keys/ under the name that stands over it.",
            "   `sha256sum` must print the sum that stands beside the name.",
        ]
        number = 4
    passphrase = " --passphrase-file /root/passphrase" if encrypted else ""
    return [
        *lines,
        f"{number}. bm-engine list --storage storage.json",
        f"{number + 1}. bm-engine restore --storage storage.json{passphrase} \\",
        "      SERVER --to /srv/restored",
    ]


def _settings(storage: "Storage") -> list[str]:
    """Return the engine's settings of the storage, as JSON in lines; what is secret is not ours to print."""
    kind = storage.WhichOneof("config") or ""
    lines = [""]
    for name, value in {"type": kind, **_FIELDS[kind](getattr(storage, kind))}.items():
        item = f"{json.dumps(name)}: {json.dumps(value)}"
        if lines[-1] and len(lines[-1]) + len(item) > _WIDTH - 10:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{item}"
    first, *rest = (f" {line}" for line in lines)
    joined = ",\n".join(["{" + first[1:], *rest]) + "}"
    return joined.split("\n")


def _local(place: "LocalConfig") -> dict[str, Any]:
    return {"path": place.path}


def _sftp(place: "SftpConfig") -> dict[str, Any]:
    found = {"host": place.host, "port": place.port or 22, "username": place.username, "path": place.path}
    return {**found, "private_key_file": "/root/key", **_given(host_key=place.host_key)}


def _s3(place: "S3Config") -> dict[str, Any]:
    found = {"bucket": place.bucket, "region": place.region, "access_key": place.access_key}
    given = _given(endpoint=place.endpoint, prefix=place.prefix, addressing=_ADDRESSINGS.get(place.addressing, ""))
    return {**found, "secret_key_file": "/root/key", **given, **_authority(place)}


def _ftp(place: "FtpConfig") -> dict[str, Any]:
    found = {"host": place.host, "port": place.port or 21, "username": place.username, "path": place.path}
    given = _given(
        tls_disabled=place.tls_disabled,
        skip_tls_verify=place.skip_tls_verify,
        tls_version_max=_TLS_VERSIONS.get(place.tls_version_max, ""),
    )
    return {**found, "password_file": "/root/key", **given, **_authority(place)}


def _rclone(place: "RcloneConfig") -> dict[str, Any]:
    found = {"remote": place.remote, "path": place.path, "config_path": "/etc/backup-manager/rclone.conf"}
    return {**found, **_given(force=place.force)}


_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "local": _local,
    "sftp": _sftp,
    "s3": _s3,
    "ftp": _ftp,
    "rclone": _rclone,
}
_ADDRESSINGS = {1: "path", 2: "virtual"}  # S3Addressing and FtpTlsVersion, which cost too much to import for a page
_TLS_VERSIONS = {1: "1.2"}  # 1.3 is what the engine does by itself


def _given(**values: Any) -> dict[str, Any]:
    """Return what is set."""
    return {name: value for name, value in values.items() if value}


def _authority(place: "S3Config | FtpConfig") -> dict[str, Any]:
    return {"ca_certificate_file": "/root/ca.pem"} if place.ca_certificate else {}


def _certificate(storage: "Storage") -> list[str]:
    """Return the certificates that the server's is checked by, as lines; none where the host's own are used."""
    kind = storage.WhichOneof("config")
    pem = getattr(getattr(storage, kind), "ca_certificate", "") if kind else ""
    if not pem:
        return []
    return ["   with this in /root/ca.pem:", *(f"     {_shown(line)}" for line in pem.strip().split("\n"))]


def _place(storage: "Storage") -> str:
    match storage.WhichOneof("config"):
        case "sftp":
            place = storage.sftp
            return f"sftp://{place.username}@{place.host}:{place.port or 22}{place.path}"
        case "s3":
            bucket = f"{storage.s3.bucket}/{storage.s3.prefix}".rstrip("/")
            return f"bucket {bucket} at {storage.s3.endpoint or f'AWS {storage.s3.region}'}"
        case "ftp":
            ftp = storage.ftp
            return f"{'ftp' if ftp.tls_disabled else 'ftps'}://{ftp.username}@{ftp.host}:{ftp.port or 21}{ftp.path}"
        case "rclone":
            return f"{storage.rclone.remote}:{storage.rclone.path} of the rclone configuration on each hypervisor"
        case _:
            return f"folder {storage.local.path} on each hypervisor"


def _shown(value: str) -> str:
    """Return a text without what would leave its line."""
    return "".join(letter for letter in value if letter.isprintable())
