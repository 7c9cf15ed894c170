"""The storage file of bm-engine: JSON with a `type` and the fields of that type's settings in spec.py.

    {"type": "s3", "bucket": "backups", "region": "eu-central-1", "access_key": "AK…", "secret_key_file": "/root/s3.key"}

A secret stands in the file itself, in a file of its own (`…_file`), or in an environment variable; never in an argument,
which everybody on the host can read.
"""

import json
import os
from pathlib import Path
from typing import Any

from engine import spec
from engine.errors import InvalidSpec
from engine.spec import FtpConfig, LocalConfig, RcloneConfig, S3Config, SftpConfig, StorageSpec

TYPES: dict[str, type] = {
    "local": LocalConfig,
    "sftp": SftpConfig,
    "s3": S3Config,
    "ftp": FtpConfig,
    "rclone": RcloneConfig,
}
# What may be in a file of its own, and the variable that else has it. Certificates are no secret; they only have many lines.
_ELSEWHERE: dict[str, dict[str, str]] = {
    "local": {},
    "sftp": {"private_key": "BM_SFTP_PRIVATE_KEY", "key_passphrase": "BM_SFTP_KEY_PASSPHRASE"},
    "s3": {"secret_key": "BM_S3_SECRET_KEY", "ca_certificate": ""},
    "ftp": {"password": "BM_FTP_PASSWORD", "ca_certificate": ""},
    "rclone": {},
}


def load_storage_file(path: str) -> StorageSpec:
    """Return the storage that a file describes, its repository still unknown. Raises InvalidSpec, which quotes no value."""
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise InvalidSpec(field=path, problem=f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidSpec(field=path, problem="is not JSON") from error
    if not isinstance(data, dict):
        raise InvalidSpec(field=path, problem="must hold a JSON object")
    kind = data.pop("type", None)
    if not isinstance(kind, str) or kind not in TYPES:
        raise InvalidSpec(field="type", problem=f"must be one of {', '.join(TYPES)}")
    for field, variable in _ELSEWHERE[kind].items():
        _fill(data, field, variable)
    config: dict[str, Any] = {kind: spec.from_json(TYPES[kind], data, path)}
    return StorageSpec("", "", **config)


def _fill(data: dict[str, Any], field: str, variable: str) -> None:
    """Put into `data` what stands in a file of its own or in the environment. Raises InvalidSpec."""
    file = data.pop(f"{field}_file", "")
    if file and field in data:
        raise InvalidSpec(field=f"{field}_file", problem=f"{field} is given as well; one of them")
    if file:
        try:
            data[field] = Path(file).read_text().rstrip("\r\n") + ("\n" if field == "private_key" else "")
        except (OSError, ValueError) as error:
            raise InvalidSpec(field=f"{field}_file", problem=f"{file} cannot be read") from error
    elif field not in data and variable and os.environ.get(variable):
        data[field] = os.environ[variable]
