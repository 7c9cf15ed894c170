"""What an engine process is asked to do, and what it says while doing it.

    agent ── spec.json ──► stdin   engine   stdout ──► events.jsonl ── agent
          ── control.jsonl (appended) ──►                one JSON object a line, numbered from 1

The spec holds secrets (storage credentials, server keys): it exists as a 0600 file only until the engine has read it.
Everything here is a frozen dataclass with JSON types inside; `load` refuses what does not fit with InvalidSpec naming the
field. Times are ISO 8601 in UTC. Unknown fields are refused: agent and engine are of one distribution.

Events (`type` and its fields; all but `held` and `ended` carry `job_id`):
    started                                    the job begins
    stage     stage                            freeze, read, commit, … (see STAGES)
    progress  stage bytes_done bytes_total bytes_stored      at most one a second and job
    log       level message                    level is info, warning or error
    record    record                           a backup found by reindex (clear part of backup.json and of its disks' manifests)
    commit                                     asks whether the job still holds its lease; see `Control`
    finished  state failure result             state is completed, completed_with_warnings, failed or cancelled; fsynced
    held                                       from here on no job begins, until the agent says otherwise
    ended                                      the process's last line
`failure` is null or {reason, message, facts, step}; `result` is a JSON object whose shape is the verb's (`*Result` here).

A job that has not begun when it is cancelled, or when its time is over, is `finished` without having `started`.

Control lines:  {"type": "cancel", "job_id": …}   {"type": "grant", "workers": …, "read_limit": …, "upload_limit": …}
                {"type": "commit", "job_id": …, "allow": true}
                {"type": "hold", "hold": true}    no further job begins until it is false; answered by the event `held`
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from engine.errors import InvalidSpec

SPEC_VERSION = 1
STAGES = ("prepare", "freeze", "read", "write", "verify", "commit", "clean")

BackupType: TypeAlias = Literal["full", "incremental", "differential", "copy"]
Consistency: TypeAlias = Literal["freeze_or_pause", "freeze", "pause", "none"]
ImageFormat: TypeAlias = Literal["raw", "qcow2"]
Priority: TypeAlias = Literal["normal", "low", "idle"]
S3Addressing: TypeAlias = Literal["auto", "path", "virtual"]
TlsVersion: TypeAlias = Literal["1.2", "1.3"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalConfig:
    path: str


@dataclass(frozen=True, slots=True)
class SftpConfig:
    """`private_key` is PEM; `host_key` is the pinned key as `type base64`, "" to learn it at the first contact."""

    host: str
    username: str
    path: str
    private_key: str = field(repr=False)
    port: int = 22
    key_passphrase: str = field(default="", repr=False)
    host_key: str = ""
    bind_address: str = ""


@dataclass(frozen=True, slots=True)
class S3Config:
    """A bucket. `endpoint` is a URL, "" for AWS; `prefix` a folder of keys, "" for the whole bucket.

    `part_size_bytes` is a multipart upload's part, 0 to choose; `concurrency` parts are in flight at most. `ca_certificate` is
    PEM of what signed the server's certificate, "" for those that the system trusts.
    """

    bucket: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    endpoint: str = ""
    prefix: str = ""
    concurrency: int = 8
    part_size_bytes: int = 0
    addressing: S3Addressing = "auto"
    ca_certificate: str = ""
    bind_address: str = ""


@dataclass(frozen=True, slots=True)
class FtpConfig:
    """An FTP server, by TLS unless `tls_disabled`; `tls_version_max` is for servers that fail at 1.3."""

    host: str
    username: str
    path: str
    password: str = field(repr=False)
    port: int = 21
    tls_disabled: bool = False
    tls_version_max: TlsVersion = "1.3"
    skip_tls_verify: bool = False
    ca_certificate: str = ""
    bind_address: str = ""


@dataclass(frozen=True, slots=True)
class RcloneConfig:
    """A remote of the rclone configuration at `config_path` on this host; `path` is a folder of it.

    `s3_concurrency` is rclone's own upload concurrency for remotes of the type s3. `force` accepts a remote that is refused
    else: one that spools uploads, limits their rate, or cannot be read in ranges (S16, S17).
    """

    remote: str
    path: str
    config_path: str = "/etc/backup-manager/rclone.conf"
    s3_concurrency: int = 4
    force: bool = False
    bind_address: str = ""


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Where backups lie. Exactly one of `local`, `sftp`, `s3`, `ftp` and `rclone` is set.

    `repository_id` is the repository that must be there; a place without one is initialized with it (S29) unless
    `initialized` says that it has been there: then its disk is not mounted, and a backup must not begin anew below it.
    `wrapped_keys` are key objects (JSON texts) to be present under `keys/`, by key id. `key_id` is the key that new
    backups are sealed with, "" for none.
    """

    repository_id: str
    installation_id: str
    local: LocalConfig | None = None
    sftp: SftpConfig | None = None
    s3: S3Config | None = None
    ftp: FtpConfig | None = None
    rclone: RcloneConfig | None = None
    wrapped_keys: dict[str, str] = field(default_factory=dict)
    key_id: str = ""
    initialized: bool = False


@dataclass(frozen=True, slots=True)
class BackupJob:
    """Back up one domain. `server_keys` maps key ids to the server's key in hex (32 bytes).

    `disk_types` has the disks whose type is not the job's own `type`. `interval_seconds` is how far apart the schedule's runs are, 0 for one that has none: a full is due half of it before
    its days are over, so that jitter does not make them a day more (T29).
    """

    server_id: str
    domain_uuid: str
    backup_id: str
    create_time: str
    type: BackupType = "incremental"
    consistency: Consistency = "freeze_or_pause"
    disks: tuple[str, ...] = ()
    disk_types: dict[str, BackupType] = field(default_factory=dict)
    full_interval_days: int = 7
    interval_seconds: int = 0
    server_keys: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class RestoreJob:
    """Restore a backup's disks into the domain's images, or (with `target_folder` or `targets`) to files and block devices.

    `manifest_digest` is what the catalog knows of backup.json, "" if nothing; `disks` empty means all that the backup has.
    `points` has the disks that come from another backup of the server, with its id. `targets` has a disk's absolute path;
    one without goes to `<disk>.<target_format>` in the folder. What is there already is written over with `overwrite` alone.
    """

    server_id: str
    domain_uuid: str
    backup_id: str
    disks: tuple[str, ...] = ()
    target_folder: str = ""
    manifest_digest: str = ""
    server_keys: dict[str, str] = field(default_factory=dict, repr=False)
    points: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    target_format: ImageFormat = "raw"
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class VerifyJob:
    """Read every frame that a backup needs and check it; `backup_id` empty means every backup of the server.

    `note_damage`: leave a mark beside damaged data, so that the next backup begins a new chain.
    """

    server_id: str
    backup_id: str = ""
    server_keys: dict[str, str] = field(default_factory=dict, repr=False)
    note_damage: bool = True


@dataclass(frozen=True, slots=True)
class ReindexJob:
    """Read every manifest below the storage (of one server if `server_id` is set) and report it as `record` events."""

    server_id: str = ""


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete these backups of a server; refused for each that a surviving manifest still needs (R19)."""

    server_id: str
    backup_ids: tuple[str, ...]
    domain_uuid: str = ""


@dataclass(frozen=True, slots=True)
class TestJob:
    """Connect, write, read back, read a range, delete, and report each step's milliseconds; learns an SFTP host key."""


@dataclass(frozen=True, slots=True)
class HealthJob:
    """Look at the storage without writing: the way in, whose repository it is, and the room left. Gives up after seconds."""


@dataclass(frozen=True, slots=True)
class TicketJob:
    """Leave a restore ticket for one backup at `path` on this host, for `lifetime_seconds`; see ticket.py."""

    server_id: str
    backup_id: str
    path: str
    lifetime_seconds: int
    disks: tuple[str, ...] = ()
    manifest_digest: str = ""
    server_keys: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class BundleJob:
    """Write part `number` of `count` of a recovery bundle; `data` is base64. Of older ones the newest `keep` stay, 0: all do."""

    bundle_id: str
    number: int
    count: int
    data: str = field(repr=False)
    keep: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One job; exactly one of the verbs is set. `restarts`: how many engines died on this attempt before.

    `begin_uptime_max` are seconds since this host's boot: a job whose turn comes later ends with WINDOW_CLOSED; 0 for never.
    """

    job_id: str
    attempt: int = 1
    restarts: int = 0
    begin_uptime_max: float = 0.0
    backup: BackupJob | None = None
    restore: RestoreJob | None = None
    verify: VerifyJob | None = None
    reindex: ReindexJob | None = None
    delete: DeleteJob | None = None
    test: TestJob | None = None
    health: HealthJob | None = None
    ticket: TicketJob | None = None
    bundle: BundleJob | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How the work is done. Rates are bytes a second, 0 for no limit; `compression_level` 0 stores frames as they are."""

    workers: int = 4
    compression_threads: int = 1
    compression_level: int = 3
    read_limit: int = 0
    upload_limit: int = 0
    io_priority: Priority = "normal"
    cpu_priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Operation:
    """One engine process's work: jobs on one storage. `managed` says that an agent answers `commit` on the control file.

    `concurrency` jobs run side by side (P2), begun in their order; they share the workers and the limits of `settings`.
    `catalog_folder` is where this host keeps what it knows of its backups (see inventory.py), "" for nowhere.
    `stop_grace_seconds`: how long a restore lets the guest shut down by itself before it is ended.
    """

    operation_id: str
    storage: StorageSpec
    jobs: tuple[Job, ...]
    concurrency: int = 1
    settings: Settings = Settings()
    host: str = ""
    libvirt_uri: str = "qemu:///system"
    scratch_folder: str = "/var/lib/backup-manager/scratch"
    lock_folder: str = "/run/backup-manager/locks"
    control_file: str = ""
    managed: bool = False
    catalog_folder: str = ""
    stop_grace_seconds: int = 60
    version: int = SPEC_VERSION


# ---- JSON ---------------------------------------------------------------------------------------------------------------


def dump(value: Any) -> str:
    """Return a dataclass from this file as JSON text."""
    return json.dumps(dataclasses.asdict(value), separators=(",", ":"))


def load(kind: type[T], text: str | bytes) -> T:
    """Return the dataclass that `dump` made a text from. Raises InvalidSpec naming the first field that does not fit."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidSpec(field=kind.__name__, problem=f"is not JSON: {error}") from error
    return typing.cast("T", from_json(kind, data, kind.__name__))


def from_json(kind: Any, data: Any, name: str) -> Any:
    """Return `data` as a value of the type `kind` (a dataclass, a container or a scalar); `name` is used in errors."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type", kind), data, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if data not in arguments:
            raise InvalidSpec(field=name, problem=f"must be one of {', '.join(arguments)}")
        return data
    if origin in {typing.Union, types.UnionType}:
        if data is None and type(None) in arguments:
            return None
        return from_json(next(one for one in arguments if one is not type(None)), data, name)
    if origin in {tuple, list}:
        _expect(isinstance(data, list), name, "must be a list")
        items = (from_json(arguments[0], item, f"{name}[{position}]") for position, item in enumerate(data))
        return tuple(items) if origin is tuple else list(items)
    if origin is dict:
        _expect(isinstance(data, dict), name, "must be an object")
        return {key: from_json(arguments[1], item, f"{name}.{key}") for key, item in data.items()}
    if kind is Any:
        return data
    _expect(type(data) is kind or (kind is float and type(data) is int), name, f"must be of type {kind.__name__}")
    return data


def _dataclass(kind: type, data: Any, name: str) -> Any:
    _expect(isinstance(data, dict), name, "must be an object")
    hints = typing.get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}
    for key in data:
        _expect(key in fields, f"{name}.{key}", "is unknown")
    values = {}
    for key, one in fields.items():
        if key in data:
            values[key] = from_json(hints[key], data[key], f"{name}.{key}")
        else:
            optional = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
            _expect(optional, f"{name}.{key}", "is missing")
    return kind(**values)


def _expect(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise InvalidSpec(field=name, problem=problem)
