"""What bm-engine's verbs do: they make the same operation that an agent would send, and run it here."""

import argparse
import getpass
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import spec
from engine.catalog import read_history
from engine.cli import print_json
from engine.console import ConsoleReport
from engine.errors import (
    BackupManagerError,
    BackupNotFound,
    InvalidSpec,
    KeyMissing,
    ObjectNotFound,
    RepositoryMissing,
    TargetError,
)
from engine.format import names
from engine.format.crypto import StorageKey
from engine.format.keys import unwrap_key, wrap_key
from engine.format.markers import Repository
from engine.ids import is_id, new_id
from engine.jobs import Outcome, run_job
from engine.memory import keep_one_pool
from engine.reindex import reindex
from engine.repository import list_servers, open_repository, read_keys
from engine.spec import (
    BackupJob,
    DeleteJob,
    Job,
    LocalConfig,
    Operation,
    RestoreJob,
    Settings,
    SftpConfig,
    StorageSpec,
    VerifyJob,
)
from engine.storage.base import Storage
from engine.storage.open import open_storage
from engine.units import human_bytes
from engine.work import Stop, Work

CANCELLED = 8
_EXIT_BY_REASON = {
    2: {"INVALID_FIELD"},
    3: {"DOMAIN_NOT_FOUND", "DISK_NOT_FOUND", "BACKUP_NOT_FOUND", "OBJECT_NOT_FOUND", "REPOSITORY_MISSING"},
    4: {"VM_BUSY", "VM_STATE", "STILL_NEEDED", "TARGET_FAILED", "DISK_MISMATCH", "REPOSITORY_FOREIGN", "OBJECT_EXISTS"},
    5: {"WRONG_KEY", "KEY_MISSING", "STORAGE_PERMISSION_DENIED", "STORAGE_LOGIN_FAILED", "STORAGE_HOST_KEY_CHANGED"},
    6: {"STORAGE_UNREACHABLE", "LIBVIRT_UNREACHABLE"},
    7: {"FORMAT_INVALID", "FRAME_CORRUPT", "SEGMENT_CORRUPT", "MANIFEST_CORRUPT", "CHAIN_BROKEN", "VERIFY_FAILED"},
}


def run(options: argparse.Namespace) -> int:
    """Do what was asked and return the exit status."""
    keep_one_pool()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "init": _init, "backup": _backup, "list": _list, "restore": _restore, "verify": _verify, "delete": _delete, "reindex": _reindex,
        "cleanup": _cleanup,
    }  # fmt: skip
    try:
        return verbs[options.verb](options)
    except BackupManagerError as error:
        return _refuse(options, error.reason, error.message, error.facts)
    except KeyboardInterrupt:
        return CANCELLED


def _refuse(options: argparse.Namespace, reason: str, message: str, facts: dict[str, str]) -> int:
    if options.output == "json":
        print_json({"error": {"reason": reason, "message": message, "facts": facts}})
    print(f"bm-engine: {message} [{reason}]", file=sys.stderr)
    return exit_status(reason)


def exit_status(reason: str) -> int:
    """Return the exit status that a reason stands for; 1 for those without one of their own."""
    return next((status for status, reasons in _EXIT_BY_REASON.items() if reason in reasons), 1)


# ---- storage and keys --------------------------------------------------------------------------------------------------


def load_storage_file(path: str) -> StorageSpec:
    """Return the storage that a file describes, its repository still unknown. Raises InvalidSpec."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidSpec(field=path, problem=f"cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InvalidSpec(field=path, problem="must hold a JSON object")
    kind = data.pop("type", None)
    if kind == "local":
        return StorageSpec("", "", local=spec.from_json(LocalConfig, data, path))
    if kind == "sftp":
        key_file = data.pop("private_key_file", "")
        if key_file:
            try:
                data["private_key"] = Path(key_file).read_text()
            except OSError as error:
                raise InvalidSpec(field="private_key_file", problem=str(error)) from error
        return StorageSpec("", "", sftp=spec.from_json(SftpConfig, data, path))
    raise InvalidSpec(field="type", problem="must be local or sftp")


def _known(storage: Storage, target: StorageSpec) -> StorageSpec:
    """Return `target` with the ids and keys of the repository that lies there. Raises RepositoryMissing."""
    try:
        found = Repository.load(storage.get(names.REPOSITORY), storage.label)
    except ObjectNotFound as error:
        raise RepositoryMissing(storage=storage.label) from error
    keys = read_keys(storage)
    wrapped = {key_id: key.dump().decode() for key_id, key in keys.items()}
    key_id = max(keys, default="")
    return replace(
        target, repository_id=found.repository_id, installation_id=found.installation_id, wrapped_keys=wrapped, key_id=key_id,
        initialized=True,
    )  # fmt: skip


def _storage_key(options: argparse.Namespace, storage: Storage, target: StorageSpec) -> StorageKey | None:
    """Return the storage's key, opened by the passphrase; None for a plain repository. Raises WrongKey."""
    if not target.key_id:
        return None
    return unwrap_key(read_keys(storage)[target.key_id], _passphrase(options, target.key_id))


def _passphrase(options: argparse.Namespace, key_id: str) -> str:
    if options.passphrase_file:
        try:
            return Path(options.passphrase_file).read_text().rstrip("\n")
        except OSError as error:
            raise InvalidSpec(field="passphrase_file", problem=str(error)) from error
    if "BM_PASSPHRASE" in os.environ:
        return os.environ["BM_PASSPHRASE"]
    if not sys.stdin.isatty():
        raise KeyMissing(key_id=key_id)
    return getpass.getpass("Passphrase: ")


def _server_keys(key: StorageKey | None, server_id: str) -> dict[str, str]:
    return {key.key_id: key.server_key(server_id).secret.hex()} if key is not None else {}


def _server_id(storage: Storage, name: str) -> str:
    """Return the server that `name` means: its id, or the domain UUID or name in any of its backups.

    Raises BackupNotFound, and InvalidSpec when several servers have or had that name: the wrong one must not be written over.
    """
    report = ConsoleReport(quiet=True)
    reindex(storage, name if is_id(name) else "", {}, Work(report, Settings()))
    if is_id(name) and report.records:
        return name
    if is_id(name):
        reindex(storage, "", {}, Work(report, Settings()))
    found = {
        str(record["server_id"])
        for record in report.records
        if name in {record["backup"]["domain_uuid"], record["backup"]["domain_name"]}
    }
    if len(found) > 1:
        raise InvalidSpec(field=name, problem=f"means several servers, use the id of one: {', '.join(sorted(found))}")
    if not found:
        raise BackupNotFound(backup_id="any", server_id=name)
    return found.pop()


# ---- verbs -------------------------------------------------------------------------------------------------------------


def _init(options: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    target = load_storage_file(options.storage)
    with open_storage(target) as storage:
        target = replace(target, repository_id=new_id(now), installation_id=new_id(now))
        if options.encrypt:
            key = StorageKey.generate(new_id(now))
            wrapped = wrap_key(key, _passphrase(options, key.key_id), now.isoformat(timespec="seconds"))
            target = replace(target, wrapped_keys={key.key_id: wrapped.dump().decode()}, key_id=key.key_id)
        open_repository(storage, target, now)
        host_key = getattr(storage, "host_key", "")
    result = {"repository_id": target.repository_id, "key_id": target.key_id, "host_key": host_key}
    if options.output == "json":
        print_json(result)
    else:
        print(f"repository {target.repository_id} is ready" + (", encrypted" if target.key_id else ""))
        if host_key:
            print(f'pin the server in {options.storage}: "host_key": "{host_key}"')
    return 0


def _backup(options: argparse.Namespace) -> int:
    from engine.hypervisor.connection import open_connection

    now = datetime.now(UTC)
    with open_connection(options.libvirt) as connection:
        domain_uuid = connection.domain(options.domain).uuid
    target, key = _open(options)
    job = BackupJob(
        server_id=domain_uuid, domain_uuid=domain_uuid, backup_id=new_id(now), create_time=now.isoformat(),
        type=options.type, consistency=options.consistency, disks=tuple(options.disk),
        full_interval_days=options.full_interval_days, server_keys=_server_keys(key, domain_uuid),
    )  # fmt: skip
    settings = Settings(
        workers=options.workers, compression_level=options.level, compression_threads=options.compression_threads,
        read_limit=options.read_limit, upload_limit=options.upload_limit,
    )  # fmt: skip
    return _run(options, Job(new_id(now), backup=job), target, settings, _print_backup)


def _print_backup(result: dict[str, Any]) -> None:
    print(f"backup {result['backup_id']}  consistency: {result['consistency']}")
    for disk in result["disks"]:
        why = f" ({disk['fallback_reason']})" if disk["fallback_reason"] else ""
        sizes = f"{human_bytes(disk['data_bytes'])} in {human_bytes(disk['stored_bytes'])}"
        print(f"  {disk['disk']}: {disk['type']}{why}, {sizes}")


def _list(options: argparse.Namespace) -> int:
    report = ConsoleReport(quiet=True)
    with open_storage(load_storage_file(options.storage)) as storage:
        server_id = _server_id(storage, options.server) if options.server else ""
        result = reindex(storage, server_id, {}, Work(report, Settings()))
    if options.output == "json":
        print_json({"backups": report.records, "unreadable": result.unreadable})
        return 0
    for record in report.records:
        backup = record["backup"]
        disks = ", ".join(f"{disk['disk']} {disk['type']}" for disk in backup["disks"])
        stored = human_bytes(sum(disk["stored_bytes"] for disk in backup["disks"]))
        print(f"{backup['create_time'][:19]}  {backup['domain_name']:<20} {backup['backup_id']}  {stored:>9}  {disks}")
    for name in result.unreadable:
        print(f"cannot be read: {name}")
    return 0


def _reindex(options: argparse.Namespace) -> int:
    """Read the catalog from the storage; with a folder, write each backup's domain definition there, which needs the key."""
    if not options.definitions:
        return _list(options)
    target, key = _open(options)
    folder = Path(options.definitions)
    written: list[str] = []
    with open_storage(target) as storage:
        servers = [_server_id(storage, options.server)] if options.server else list(list_servers(storage))
        for server_id in servers:
            keys = {key.key_id: key.server_key(server_id)} if key is not None else {}
            found = [point.server for point in read_history(storage, server_id, keys).points]
            written += [_write_private(folder, one.backup_id, one.sealed.domain_xml) for one in found if one.sealed]
    if options.output == "json":
        print_json({"definitions": written})
    else:
        print(f"{len(written)} definitions written to {folder}")
    return 0


def _write_private(folder: Path, backup_id: str, xml: str) -> str:
    """Write a definition, which may hold secrets, for its owner's eyes; return the file's name."""
    path = folder / f"{backup_id}.xml"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(xml)
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
    return str(path)


def _restore(options: argparse.Namespace) -> int:
    target, key = _open(options)
    with open_storage(target) as storage:
        server_id = _server_id(storage, options.domain)
        history = read_history(storage, server_id, {})
        if not history.points:
            raise BackupNotFound(backup_id="any", server_id=server_id)
        point = history.point(server_id, options.backup) if options.backup else history.points[-1]
    server = point.server
    if not options.to and not options.yes:
        print(f"This overwrites the disks of domain {server.domain_name} with their state of {server.create_time}.")
        if input("Type the domain's name to go on: ") != server.domain_name:
            return 4
    job = RestoreJob(
        server_id=server_id, domain_uuid="" if options.to else server.domain_uuid, backup_id=server.backup_id,
        disks=tuple(options.disk), target_folder=str(Path(options.to).resolve()) if options.to else "",
        server_keys=_server_keys(key, server_id),
    )  # fmt: skip
    return _run(options, _job(restore=job), target, Settings(workers=options.workers), _print_restore)


def _print_restore(result: dict[str, Any]) -> None:
    print(f"restored {', '.join(result['disks'])}: {human_bytes(result['bytes_written'])} written")
    for file in result["files"]:
        print(f"  {file}")


def _verify(options: argparse.Namespace) -> int:
    target, key = _open(options, want_key=not options.without_key)
    with open_storage(target) as storage:
        server_id = _server_id(storage, options.server)
    job = VerifyJob(server_id, options.backup, _server_keys(key, server_id))
    return _run(options, _job(verify=job), target, Settings(workers=options.workers), _print_verify)


def _print_verify(result: dict[str, Any]) -> None:
    print(
        f"{result['frames']} frames, {human_bytes(result['stored_bytes'])} checked, {result['damaged_count']} damaged"
    )
    for one in result["damaged"]:
        place = f"frame {one['frame']}" if one["frame"] >= 0 else "as a whole"
        print(f"  {one['object_name']} {place}: {one['detail']}; disk bytes {one['start']} to {one['end']}")


def _delete(options: argparse.Namespace) -> int:
    target, _ = _open(options, want_key=False)
    with open_storage(target) as storage:
        server_id = _server_id(storage, options.server)
    if not options.yes:
        print(f"This deletes {len(options.backup)} backups for ever.")
        if input("Type yes to go on: ") != "yes":
            return 4
    job = DeleteJob(server_id, tuple(options.backup))
    return _run(options, _job(delete=job), target, Settings(workers=options.workers), _print_delete)


def _print_delete(result: dict[str, Any]) -> None:
    print(f"deleted {len(result['backup_ids'])} backups, {human_bytes(result['freed_bytes'])} free")


def _cleanup(options: argparse.Namespace) -> int:
    from engine.heal import HealSpec, heal
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.domains import list_domains

    with open_connection(options.libvirt) as connection:
        wanted = [connection.domain(options.domain).uuid] if options.domain else []
        uuids = wanted or [info.uuid for info in list_domains(connection)]
    done, failed, stop = [], [], _stopped_by_signals()
    for uuid in uuids:
        healed = heal(HealSpec(options.libvirt, uuid, options.scratch, options.locks), stop)
        done += healed.done
        failed += healed.failed
    if options.output == "json":
        print_json({"done": done, "failed": failed})
    else:
        print("\n".join([*done, *(f"not done: {one}" for one in failed)]) or "nothing to tidy up")
    if stop.event.is_set():
        return CANCELLED
    return 1 if failed else 0


# ---- running -----------------------------------------------------------------------------------------------------------


def _open(options: argparse.Namespace, *, want_key: bool = True) -> tuple[StorageSpec, StorageKey | None]:
    """Return the storage's spec with its repository's ids, and its key, which is opened before anything else is done."""
    target = load_storage_file(options.storage)
    with open_storage(target) as storage:
        target = _known(storage, target)
        return target, _storage_key(options, storage, target) if want_key else None


def _job(**verb: Any) -> Job:
    return Job(new_id(datetime.now(UTC)), **verb)


def _run(
    options: argparse.Namespace,
    job: Job,
    target: StorageSpec,
    settings: Settings,
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Run a job here and now, and print how it ended."""
    operation = Operation(
        operation_id=job.job_id, storage=target, jobs=(job,), settings=settings, host=os.uname().nodename,
        libvirt_uri=getattr(options, "libvirt", ""), scratch_folder=getattr(options, "scratch", ""),
        lock_folder=getattr(options, "locks", ""), stop_grace_seconds=getattr(options, "stop_grace", 60),
    )  # fmt: skip
    report, stop = ConsoleReport(quiet=options.quiet), _stopped_by_signals()
    outcome = run_job(job, operation, Work(report, settings, stop))
    report.close()
    return _conclude(options, outcome, show)


def _stopped_by_signals() -> Stop:
    """Return what Ctrl-C and SIGTERM set from now on."""
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _conclude(options: argparse.Namespace, outcome: Outcome, show: Callable[[dict[str, Any]], None]) -> int:
    if options.output == "json":
        print_json(
            {"state": outcome.state, "failure": outcome.failure, "warnings": outcome.warnings, "result": outcome.result}
        )
    elif outcome.result is not None:
        show(outcome.result)
    if outcome.state == "cancelled":
        print("bm-engine: cancelled; nothing of it remains", file=sys.stderr)
        return CANCELLED
    if outcome.failure is not None:
        failure = outcome.failure
        print(f"bm-engine: {failure['message']} [{failure['reason']}] during {failure['step']}", file=sys.stderr)
        return exit_status(failure["reason"])
    return 0
