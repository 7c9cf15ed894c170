"""One host and one storage for tests of the verbs: jobs are made as an agent would make them, and run in this process."""

import hashlib
import subprocess
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.format.crypto import StorageKey
from engine.format.keys import ScryptCost, wrap_key
from engine.ids import new_id
from engine.jobs import Outcome, run_job
from engine.spec import (
    BackupJob,
    DeleteJob,
    Job,
    LocalConfig,
    Operation,
    ReindexJob,
    RestoreJob,
    Settings,
    StorageSpec,
    VerifyJob,
)
from engine.work import Stop, Work


class RecordingReport:
    """Keeps a job's words."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.done = 0
        self.stored = 0
        self.allow = True

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        self.stages.append(stage)

    def expect(self, bytes_total: int) -> None: ...

    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None:
        self.done += bytes_done
        self.stored += bytes_stored

    def info(self, message: str) -> None:
        self.infos.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def may_commit(self) -> bool:
        return self.allow


def new_storage(path: Path, *, encrypted: bool = True) -> tuple[StorageSpec, StorageKey | None]:
    """Return the spec of a fresh local repository, and its key."""
    now = datetime.now(UTC)
    path.mkdir(parents=True, exist_ok=True)
    target = StorageSpec(new_id(now), new_id(now), local=LocalConfig(str(path)))
    if not encrypted:
        return target, None
    key = StorageKey.generate(new_id(now))
    wrapped = wrap_key(key, "a passphrase", now.isoformat(), ScryptCost(n=2)).dump().decode()
    return replace(target, wrapped_keys={key.key_id: wrapped}, key_id=key.key_id), key


@dataclass
class Rig:
    """`uri` may be "" for verbs that need no hypervisor."""

    folder: Path
    uri: str
    target: StorageSpec
    key: StorageKey | None
    settings: Settings = field(default_factory=Settings)
    report: RecordingReport = field(default_factory=RecordingReport)
    stop_grace_seconds: int = 0
    host: str = "test-host"

    @classmethod
    def make(cls, folder: Path, uri: str = "", *, encrypted: bool = True) -> "Rig":
        target, key = new_storage(folder / "storage", encrypted=encrypted)
        return cls(folder, uri, target, key)

    def run(self, stop: Stop | None = None, report: RecordingReport | None = None, **verb: Any) -> Outcome:
        """Run one job to its end and return how it ended; `report` then has its words."""
        self.report = report or RecordingReport()
        job = Job(new_id(datetime.now(UTC)), **verb)
        return run_job(job, self.operation(job), Work(self.report, self.settings, stop))

    def operation(self, job: Job) -> Operation:
        return Operation(
            operation_id=job.job_id,
            storage=self.target,
            jobs=(job,),
            settings=self.settings,
            host=self.host,
            libvirt_uri=self.uri,
            scratch_folder=str(self.folder / "scratch"),
            lock_folder=str(self.folder / "locks"),
            stop_grace_seconds=self.stop_grace_seconds,
        )

    def keys(self, server_id: str) -> dict[str, str]:
        return {self.key.key_id: self.key.server_key(server_id).secret.hex()} if self.key else {}

    def backup_job(self, uuid: str, **options: Any) -> BackupJob:
        now = options.pop("now", datetime.now(UTC))
        keys = self.keys(uuid)
        return BackupJob(uuid, uuid, new_id(now), now.isoformat(), server_keys=keys, **options)

    def back_up(self, uuid: str, **options: Any) -> dict[str, Any]:
        """Make a backup that must succeed, and return its result."""
        return result(self.run(backup=self.backup_job(uuid, **options)))

    def restore_to(self, folder: Path, uuid: str, backup_id: str, **options: Any) -> dict[str, Path]:
        """Restore to raw files in `folder` and return them by disk."""
        folder.mkdir(exist_ok=True)
        job = RestoreJob(uuid, "", backup_id, target_folder=str(folder), server_keys=self.keys(uuid), **options)
        return {Path(file).stem: Path(file) for file in result(self.run(restore=job))["files"]}

    def restore(self, uuid: str, backup_id: str, **options: Any) -> Outcome:
        """Restore into the domain's disks."""
        return self.run(restore=self.restore_job(uuid, backup_id, **options))

    def restore_job(self, uuid: str, backup_id: str, **options: Any) -> RestoreJob:
        return RestoreJob(uuid, uuid, backup_id, server_keys=self.keys(uuid), **options)

    def verify(self, uuid: str, backup_id: str = "", *, with_key: bool = True) -> Outcome:
        return self.run(verify=VerifyJob(uuid, backup_id, self.keys(uuid) if with_key else {}))

    def delete(self, uuid: str, *backup_ids: str, domain_uuid: str = "") -> Outcome:
        return self.run(delete=DeleteJob(uuid, backup_ids, domain_uuid))

    def reindex(self) -> list[dict[str, Any]]:
        result(self.run(reindex=ReindexJob()))
        return self.report.records


def result(outcome: Outcome) -> dict[str, Any]:
    """Return a job's result; fails the test if there is none."""
    assert outcome.failure is None, outcome.failure
    assert outcome.result is not None
    return outcome.result


def reason(outcome: Outcome) -> str:
    """Return why a job failed, "" if it did not."""
    return str(outcome.failure["reason"]) if outcome.failure else ""


def digest(image: Path, image_format: str = "raw") -> str:
    """Return the SHA-256 of a disk's content, whatever the image's format."""
    if image_format == "raw":
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    raw = image.with_suffix(".digest")
    subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", image, raw], check=True)
    try:
        return digest(raw)
    finally:
        raw.unlink()
