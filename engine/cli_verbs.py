"""What bm-engine's verbs do with a storage: they make the same operation that an agent would send, and run it here."""

import argparse
import os
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from engine import inventory
from engine.catalog import History, Keys, Point, read_history
from engine.cli import print_json
from engine.cli_common import (
    find_server,
    make_job,
    open_target,
    open_target_meanwhile,
    passphrase,
    run_verb,
    server_keys,
)
from engine.cli_print import print_backup, print_backups, print_delete, print_restore, print_test, print_verify
from engine.cli_storage import load_storage_file
from engine.cli_ticket import list_by_ticket, restore_by_ticket, verify_by_ticket
from engine.console import ConsoleReport
from engine.errors import BackupNotFound, InvalidSpec, TargetError
from engine.format.crypto import StorageKey
from engine.format.keys import wrap_key
from engine.ids import new_id
from engine.reindex import reindex
from engine.repository import check_repository, list_servers, open_repository
from engine.spec import BackupJob, BackupType, DeleteJob, Job, RestoreJob, Settings, TestJob, VerifyJob
from engine.storage.open import open_storage
from engine.work import Work

BACKUP_TYPES = ("full", "incremental", "differential", "copy")
# ---- verbs -------------------------------------------------------------------------------------------------------------


def try_storage(options: argparse.Namespace) -> int:
    target = load_storage_file(options.storage)
    return run_verb(options, make_job(test=TestJob()), target, Settings(workers=options.workers), print_test)


def init(options: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    target = load_storage_file(options.storage)
    with open_storage(target) as storage:
        target = replace(target, repository_id=new_id(now), installation_id=new_id(now))
        if options.encrypt:
            key = StorageKey.generate(new_id(now))
            wrapped = wrap_key(key, passphrase(options, key.key_id), now.isoformat(timespec="seconds"))
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


def backup(options: argparse.Namespace) -> int:
    from engine.hypervisor.connection import open_connection

    now = datetime.now(UTC)
    with open_connection(options.libvirt) as connection:
        domain_uuid = connection.domain(options.domain).uuid
    target, opened_key = open_target_meanwhile(options)
    for module in ("engine.backup", "engine.source.running"):  # meanwhile what the job loads first: it takes as long
        import_module(module)
    key = opened_key()
    types = {disk: kind for disk, _, kind in (one.partition("=") for one in options.disk)}
    for disk, kind in types.items():
        if kind and kind not in BACKUP_TYPES:
            raise InvalidSpec(field=f"--disk {disk}", problem=f"must be one of {', '.join(BACKUP_TYPES)}")
    job = BackupJob(
        server_id=domain_uuid, domain_uuid=domain_uuid, backup_id=new_id(now), create_time=now.isoformat(),
        type=options.type, consistency=options.consistency, disks=tuple(types),
        disk_types={disk: cast("BackupType", kind) for disk, kind in types.items() if kind},
        full_interval_days=options.full_interval_days, server_keys=server_keys(key, domain_uuid),
    )  # fmt: skip
    settings = Settings(
        workers=options.workers, compression_level=options.level, compression_threads=options.compression_threads,
        read_limit=options.read_limit, upload_limit=options.upload_limit,
    )  # fmt: skip
    return run_verb(options, Job(new_id(now), backup=job), target, settings, print_backup)


def list_backups(options: argparse.Namespace) -> int:
    """List what lies on the storage."""
    if options.ticket:
        return list_by_ticket(options)
    if not options.storage:
        raise InvalidSpec(field="--storage", problem="is needed, or else --ticket")
    report = ConsoleReport(quiet=True)
    with open_storage(load_storage_file(options.storage)) as storage:
        server_id = find_server(storage, options.server) if options.server else ""
        result = reindex(storage, server_id, {}, Work(report, Settings()))
    print_backups(options, report.records, result.unreadable)
    return 0


def read_catalog(options: argparse.Namespace) -> int:
    """Read the catalog from the storage, and bring this host's own file up to date; with a folder, write the definitions there."""
    if options.definitions:
        return _write_definitions(options)
    target, _ = open_target(options, want_key=False)
    report = ConsoleReport(quiet=options.quiet)
    catalog = inventory.HostCatalog(Path(options.catalog), target.repository_id)
    work = Work(report, Settings(workers=options.workers))
    with open_storage(target) as storage:
        check_repository(storage, target)
        server_id = find_server(storage, options.server) if options.server else ""
        result = reindex(storage, server_id, {}, work, inventory.rebuilder(catalog, report.warn))
    report.close()
    print_backups(options, report.records, result.unreadable)
    return 0


def _write_definitions(options: argparse.Namespace) -> int:
    """Write each backup's domain definition into a folder, which needs the key."""
    target, key = open_target(options)
    folder = Path(options.definitions)
    written: list[str] = []
    with open_storage(target) as storage:
        servers = [find_server(storage, options.server)] if options.server else list(list_servers(storage))
        for server_id in servers:
            found = [point.server for point in read_history(storage, server_id, _keys(key, server_id)).points]
            written += [_write_private(folder, one.backup_id, one.sealed.domain_xml) for one in found if one.sealed]
    if options.output == "json":
        print_json({"definitions": written})
    else:
        print(f"{len(written)} definitions written to {folder}")
    return 0


def _keys(key: StorageKey | None, server_id: str) -> Keys:
    return {key.key_id: key.server_key(server_id)} if key is not None else {}


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


def restore(options: argparse.Namespace) -> int:
    """Restore a backup into the domain's disks, to files or to devices."""
    targets, points = _pairs(options.target, "--target"), _pairs(options.point, "--point")
    to_files = bool(options.to or targets)
    if options.ticket:
        return restore_by_ticket(options, _to_files(options, targets))
    if not (options.storage and options.domain):
        raise InvalidSpec(field="--storage", problem="and a domain are needed, or else --ticket")
    target, key = open_target(options)
    with open_storage(target) as storage:
        server_id = find_server(storage, options.domain)
        history = read_history(storage, server_id, {})
        if not history.points:
            raise BackupNotFound(backup_id="any", server_id=server_id)
        point = _chosen_point(options, server_id, history)
    server = point.server
    if not to_files and not options.yes:
        print(f"This overwrites the disks of domain {server.domain_name} with their state of {server.create_time}.")
        if input("Type the domain's name to go on: ") != server.domain_name:
            return 4
    job = RestoreJob(
        server_id=server_id, domain_uuid="" if to_files else server.domain_uuid, backup_id=server.backup_id,
        disks=tuple(options.disk), server_keys=server_keys(key, server_id), points=points, **_to_files(options, targets),
    )  # fmt: skip
    return run_verb(options, make_job(restore=job), target, Settings(workers=options.workers), print_restore)


def _to_files(options: argparse.Namespace, targets: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a RestoreJob that say where to and how."""
    return {
        "target_folder": str(Path(options.to).resolve()) if options.to else "",
        "targets": {disk: str(Path(path).absolute()) for disk, path in targets.items()},
        "target_format": options.format,
        "overwrite": options.overwrite,
    }


def _chosen_point(options: argparse.Namespace, server_id: str, history: History) -> Point:
    """Return the backup that was named, else the newest, with --at the newest that is not later."""
    if options.backup:
        return history.point(server_id, options.backup)
    if not options.at:
        return history.points[-1]
    try:
        limit = datetime.fromisoformat(options.at).astimezone()
    except ValueError as error:
        raise InvalidSpec(
            field="--at", problem="must be a time as 2026-11-23T03:00, of this host's zone or with one"
        ) from error
    found = [one for one in history.points if datetime.fromisoformat(one.server.create_time) <= limit]
    if not found:
        raise BackupNotFound(backup_id=f"none before {options.at}", server_id=server_id)
    return found[-1]


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """Return DISK=VALUE options by disk. Raises InvalidSpec."""
    found: dict[str, str] = {}
    for text in texts:
        disk, equals, value = text.partition("=")
        if not (disk and equals and value) or disk in found:
            raise InvalidSpec(field=option, problem=f"{text!r} must be DISK=VALUE, each disk once")
        found[disk] = value
    return found


def verify(options: argparse.Namespace) -> int:
    """Check backups of a server, or what a ticket is for."""
    if options.ticket:
        return verify_by_ticket(options)
    if not (options.storage and options.server):
        raise InvalidSpec(field="--storage", problem="and a server are needed, or else --ticket")
    target, key = open_target(options, want_key=not options.without_key)
    with open_storage(target) as storage:
        server_id = find_server(storage, options.server)
    job = VerifyJob(server_id, options.backup, server_keys(key, server_id))
    return run_verb(options, make_job(verify=job), target, Settings(workers=options.workers), print_verify)


def delete(options: argparse.Namespace) -> int:
    target, _ = open_target(options, want_key=False)
    with open_storage(target) as storage:
        server_id = find_server(storage, options.server)
    if not options.yes:
        print(f"This deletes {len(options.backup)} backups for ever.")
        if input("Type yes to go on: ") != "yes":
            return 4
    job = DeleteJob(server_id, tuple(options.backup))
    return run_verb(options, make_job(delete=job), target, Settings(workers=options.workers), print_delete)
