"""The recovery sheet of a storage (N12): plain text of at most 100 columns, made to be printed and put into a safe."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.gen.backupmanager.v1.storage_pb2 import Storage
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
    """Return the engine's settings of the storage, as JSON; the private key is not ours to print."""
    if storage.WhichOneof("config") == "local":
        return [json.dumps({"type": "local", "path": storage.local.path})]
    place = storage.sftp
    where = {"type": "sftp", "host": place.host, "port": place.port or 22, "username": place.username}
    how = {"path": place.path, "private_key_file": "/root/key", "host_key": place.host_key}
    if not place.host_key:
        del how["host_key"]
    return [json.dumps(where)[:-1] + ",", " " + json.dumps(how)[1:]]


def _place(storage: "Storage") -> str:
    if storage.WhichOneof("config") == "local":
        return f"folder {storage.local.path} on each hypervisor"
    place = storage.sftp
    return f"sftp://{place.username}@{place.host}:{place.port or 22}{place.path}"


def _shown(value: str) -> str:
    """Return a text without what would leave its line."""
    return "".join(letter for letter in value if letter.isprintable())
