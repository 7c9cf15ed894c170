"""bm-controller backup and restore: from a state folder and a database to a bundle, and back into an empty place (N11).

    authority, master key ─┐                                      ┌─► authority, master key
    tables that no storage ┼─► bundle (bundle.py) ─► empty place ─┼─► tables, nobody's session, a new epoch
    has                    ┘                                      └─► no backups: a reindex of each storage brings them

`backup` only reads, and can run beside a serving controller. After `restore`, agents find the authority that they know; the
new epoch refuses their old work, and deletes on each storage until it is reconciled.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import peewee

from controller import bundle, installation
from controller.clock import SystemClock
from controller.config import Settings
from controller.db import models
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import CannotStart
from controller.files import make_private_folder, write_atomic
from controller.security.authority import Authority, read_roots

TABLES: tuple[type[models.Table], ...] = (
    models.Installation,
    models.AccessToken,
    models.GlobalSettings,
    models.Hypervisor,
    models.Package,
    models.Server,
    models.ServerClaim,
    models.Storage,
    models.StorageKey,
    models.Secret,
    models.Schedule,
    models.Webhook,
)
"""What storages cannot give back. Jobs, logs, events, open purges and unused enrollment tokens are not among it."""
PASSING: dict[str, frozenset[str]] = {
    "installation": frozenset({"mark"}),
    "access_token": frozenset({"last_use_time"}),
    "hypervisor": frozenset(
        {
            "boot_id", "session_id", "session_count", "last_contact_time", "clock_offset_microseconds", "capabilities",
            "scratch_free_bytes", "greeted_epoch", "load", "inventory_time", "agent_version", "protocol_version",
        }
    ),
    "server": frozenset({"place_state"}),
    "schedule": frozenset({"due_time", "anchor_time", "last_start_time"}),
    "webhook": frozenset(
        {"cursor", "delivered_count", "missed_count", "success_time", "failure_time", "failure", "hold_time"}
    ),
}  # fmt: skip
"""Columns that change by themselves, and are worth no bundle of their own."""
EVENTS_SKIPPED = (
    1_000_000  # numbers that may have been given since the bundle was written; whoever knows one reads anew
)
_NEWEST_EVENT = """
    SELECT COALESCE(MAX(reached), 0) FROM (
        SELECT MAX(sequence) AS reached FROM event UNION ALL SELECT MAX(removed_sequence) FROM event_horizon
    ) AS ends
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle that was written; `key` is its recovery key in words where it was made just now, else ""."""

    file: Path | None
    server_count: int
    storage_count: int
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Restored:
    installation_id: str
    authority_fingerprint: str
    epoch: int
    create_time: str
    server_count: int
    storages: tuple[str, ...]


def backup(settings: Settings, file: Path | None, *, new_key: bool = False) -> Written:
    """Write a bundle in place of an earlier one; without a file only see to it that there is a key. Raises CannotStart."""
    kept = None if new_key else bundle.load_key(settings.recovery_key_file)
    value = collect(settings, SystemClock().now())
    try:
        key = kept or bundle.make_key(settings.recovery_key_file)
        if file is not None:
            write_atomic(file, bundle.seal(value, key))
    except OSError as error:
        raise CannotStart(f"cannot write {file or settings.recovery_key_file}: {error.strerror}") from error
    tables = value["tables"]
    return Written(file, len(tables["server"]), len(tables["storage"]), "" if kept else bundle.shown(key))


def restore(settings: Settings, file: Path, key: bytes) -> Restored:
    """Make a controller of a bundle where there is none. Raises CannotStart; a place that is not empty is left as it is."""
    try:
        value = bundle.unseal(file.read_bytes(), key)
    except OSError as error:
        raise CannotStart(f"cannot read {file}: {error.strerror}") from error
    _check_empty(settings)
    try:
        make_private_folder(settings.state_folder)
        make_private_folder(settings.authority_folder)
    except OSError as error:
        raise CannotStart(f"cannot make the state folder {settings.state_folder}: {error.strerror}") from error
    database = Database.open(settings.database_url)
    try:
        database.call(_check_unused)
        _write_files(settings, value, key)
        database.call(_fill, value)  # last, and whole: without it, nothing here serves
        epoch = database.call(installation.get).epoch
    finally:
        database.close()
    authority = Authority.load(settings.authority_folder, settings.host_names, SystemClock().now())
    return Restored(
        value["installation_id"],
        authority.fingerprint,
        epoch,
        value["create_time"],
        len(value["tables"]["server"]),
        tuple(sorted(row["name"] for row in value["tables"]["storage"])),
    )


# ---- reading ------------------------------------------------------------------------------------------------------------


def digest(value: dict[str, Any]) -> str:
    """Return what tells whether anything worth a bundle has changed; what every heartbeat changes is not."""
    tables = {
        name: [
            {key: text for key, text in row.items() if key not in PASSING.get(name, ())}
            for row in rows
            if row.get("scope") != "portal"  # made for each visit of a customer
        ]
        for name, rows in value["tables"].items()
    }
    lasting = [value["authority"], value["master_key"], tables]
    return hashlib.sha256(json.dumps(lasting, sort_keys=True, default=repr).encode()).hexdigest()


def collect(settings: Settings, now: datetime) -> dict[str, Any]:
    """Return what a bundle holds, everything as at one instant. Raises CannotStart. Any thread."""
    Vault.load(settings.master_key_file)  # refuses one that is damaged: a bundle without the key is worth nothing
    try:
        if not read_roots(settings.authority_folder):
            raise CannotStart(f"no root in {settings.authority_folder}; run bm-controller init first")
        roots = sorted(settings.authority_folder.glob("root-*"))
        files = {path.name: path.read_text(encoding="ascii") for path in roots if path.suffix in {".crt", ".key"}}
        master = settings.master_key_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise CannotStart(f"the state folder cannot be read: {type(error).__name__}") from error
    with _reading(settings.database_url) as cursor:
        tables = {_name(table): _rows(cursor, _name(table)) for table in TABLES}
        newest = cursor.execute(_NEWEST_EVENT).fetchone()[0]
    if not tables["installation"]:
        raise CannotStart("the database is empty; run bm-controller init first")
    return {
        "installation_id": tables["installation"][0]["installation_id"],
        "create_time": now.isoformat(timespec="seconds"),
        "authority": files,
        "master_key": master,
        "tables": tables,
        "event_sequence": newest,
    }


@contextlib.contextmanager
def _reading(url: str) -> Iterator[Any]:
    """Give a cursor onto the database as it stands at one instant. Raises CannotStart."""
    scheme, _, rest = url.partition("://")
    if scheme != "sqlite":
        with _reading_postgres(f"postgresql://{rest}") as cursor:
            yield cursor
        return
    path = Path("/" + unquote(rest).lstrip("/"))
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            connection.execute("BEGIN")
            yield connection.cursor()
    except sqlite3.Error as error:
        raise CannotStart(f"{path} cannot be read: {type(error).__name__}") from error


@contextlib.contextmanager
def _reading_postgres(url: str) -> Iterator[Any]:
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield connection.cursor()
    except psycopg.Error as error:
        raise CannotStart(f"the database cannot be read: {type(error).__name__}") from error


def _rows(cursor: Any, table: str) -> list[dict[str, Any]]:
    cursor.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - a name of ours
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# ---- writing ------------------------------------------------------------------------------------------------------------


def _check_empty(settings: Settings) -> None:
    found = [*settings.authority_folder.glob("*"), *settings.state_folder.glob("master.key")]
    if found:
        raise CannotStart(f"{found[0]} is there already; restore into an empty state folder and an empty database")


def _check_unused() -> None:
    for table in TABLES:
        if table.select().exists():
            raise CannotStart("the database is not empty; restore into an empty state folder and an empty database")


def _write_files(settings: Settings, value: dict[str, Any], key: bytes) -> None:
    for name, text in value["authority"].items():
        if Path(name).name != name or not name.startswith("root-"):
            raise CannotStart("the bundle names a file that is no root")
        write_atomic(settings.authority_folder / name, text.encode(), 0o600 if name.endswith(".key") else 0o644)
    write_atomic(settings.master_key_file, f"{value['master_key']}\n".encode())
    write_atomic(settings.recovery_key_file, key.hex().encode() + b"\n")


def _fill(value: dict[str, Any]) -> None:
    for table in TABLES:
        _insert(table, value["tables"][_name(table)])
    installation.begin_epoch(SystemClock().now())
    models.Hypervisor.update(session_id="", last_contact_time=None, inventory_time=None, greeted_epoch=0).execute()
    reached = int(value["event_sequence"]) + EVENTS_SKIPPED
    models.EventHorizon.delete().execute()
    models.EventHorizon.insert(number=1, removed_sequence=reached).execute()
    models.Webhook.update(cursor=reached).execute()
    living = models.Server.select(models.Server.server_id, models.Server.create_time).where(
        models.Server.delete_time.is_null()
    )
    for server in living:  # until their backups are found
        models.UnprotectedServer.insert(server_id=server.server_id, begin_time=server.create_time).execute()


def _insert(table: type[models.Table], rows: list[dict[str, Any]]) -> None:
    """Insert rows as they were read, values as the database has them; columns that are newer get their defaults."""
    fields: dict[str, Any] = {one.column_name: one for one in _meta(table).sorted_fields}
    database = _meta(table).database
    for row in rows:
        if unknown := row.keys() - fields.keys():
            raise CannotStart(
                f"a newer version wrote the bundle ({_name(table)}.{min(unknown)}); restore it with that one"
            )
        values = {name: _value(fields[name], row[name]) for name in row}
        for name, one in fields.items():
            if name not in values and one.default is not None:
                default = one.default() if callable(one.default) else one.default
                values[name] = one.db_value(default)
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join([database.param] * len(values))
        database.execute_sql(
            f'INSERT INTO "{_name(table)}" ({names}) VALUES ({marks})',  # noqa: S608 - names of ours
            list(values.values()),
        )


def _value(one: Any, value: Any) -> Any:
    return bool(value) if isinstance(one, peewee.BooleanField) and value is not None else value


def _name(table: type[models.Table]) -> str:
    return str(_meta(table).table_name)


def _meta(table: type[models.Table]) -> Any:
    untyped: Any = table
    return untyped._meta  # noqa: SLF001 - peewee's public name for it
