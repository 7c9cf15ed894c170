"""What each verb brings back; the shapes of `finished.result` (see `spec.py`). Times are ISO 8601 UTC, sizes bytes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DiskResult:
    """One disk's part in a backup. `data_bytes` are held before compression; `fallback_reason` says why not as asked."""

    disk: str
    type: str
    chain_id: str
    parent_backup_id: str
    size_bytes: int
    data_bytes: int
    stored_bytes: int
    sha256: str
    fallback_reason: str


@dataclass(frozen=True, slots=True)
class SkippedResult:
    disk: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A restore point. `needed_backup_ids`: whose data it needs, oldest first, itself last; `manifest_digest`: of backup.json."""

    backup_id: str
    create_time: str
    consistency: str
    disks: list[DiskResult]
    skipped: list[SkippedResult]
    needed_backup_ids: list[str]
    manifest_digest: str
    encrypted: bool
    domain_uuid: str
    domain_name: str
    path: str
    quiesce_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BackupRecord:
    """What manifests say of a backup that a reindex found.

    `unreadable_disks` have a manifest that cannot be used, `damaged_disks` segments in which a verification found damage.
    """

    server_id: str
    job_id: str
    backup: BackupResult
    unreadable_disks: list[str] = field(default_factory=list)
    damaged_disks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    disks: list[str]
    bytes_written: int
    server_started: bool
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged frame and the disk range it covers; `frame` is -1 when the object as a whole cannot be read."""

    backup_id: str
    disk: str
    object_name: str
    frame: int
    start: int
    end: int
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    frames: int
    stored_bytes: int
    damaged_count: int
    damaged: list[Damage]


@dataclass(frozen=True, slots=True)
class DeleteResult:
    backup_ids: list[str]
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class ReindexResult:
    backup_count: int
    unreadable: list[str]


@dataclass(frozen=True, slots=True)
class TestStep:
    """One step of a storage test; `bytes_per_second` is 0 where it makes no sense."""

    name: str
    seconds: float
    bytes_per_second: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class TestResult:
    """A storage test, of a failed one too: its last step then says so, and `pending` has those that it did not come to."""

    steps: list[TestStep]
    host_key: str
    pending: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TicketResult:
    """A restore ticket that was left at `path`; `command` restores with it."""

    path: str
    expire_time: str
    command: str
    disks: list[str]


@dataclass(frozen=True, slots=True)
class BundleResult:
    """A part of a recovery bundle that was written and read back, and how many older bundles were removed."""

    name: str
    stored_bytes: int
    removed_count: int


@dataclass(frozen=True, slots=True)
class HealthResult:
    """A storage that let us in. `initialized`: its repository is there; both sizes are 0 where the backend cannot tell."""

    latency_seconds: float
    initialized: bool
    total_bytes: int = 0
    free_bytes: int = 0
