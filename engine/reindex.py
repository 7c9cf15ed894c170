"""Reindex: the catalog from the storage alone (C3). Restore points need no passphrase."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from engine.catalog import History, Keys, Point, list_servers, read_history
from engine.format import names
from engine.format.manifest import DiskManifest
from engine.results import BackupRecord, BackupResult, DiskResult, ReindexResult, SkippedResult
from engine.storage.base import Storage
from engine.work import Work


def reindex(
    storage: Storage,
    server_id: str,
    keys: Keys,
    work: Work,
    keep: Callable[[str, list[dict[str, Any]]], None] = lambda _server_id, _records: None,
) -> ReindexResult:
    """Report a record for every backup of the server, of all servers if `server_id` is "". Changes nothing on the storage.

    `keep` gets each server's id and all its records, unless some of its backups cannot be read.
    """
    work.report.stage("read")
    servers = [server_id] if server_id else list(list_servers(storage))
    work.report.expect(len(servers))
    found, unreadable = 0, []
    for one in servers:
        work.stop.check()
        history = read_history(storage, one, keys)
        records = []
        for point in history.points:
            if point.marked:
                continue
            records.append(asdict(record(point, history)))
            work.report.record(records[-1])
            found += 1
            unreadable += [names.manifest_name(one, point.server.backup_id, disk) for disk in point.unreadable]
        unreadable += [names.backup_name(one, backup_id) for backup_id in history.unreadable]
        if not history.unreadable:
            keep(one, records)
        work.report.advance(1)
    return ReindexResult(found, unreadable)


def record(point: Point, history: History | None = None) -> BackupRecord:
    """Return what a backup's manifests say, as the controller's catalog has it; only `history` tells of damage."""
    server = point.server
    damaged = [disk for disk, one in sorted(point.disks.items()) if history and _is_damaged(history, one)]
    return BackupRecord(server.server_id, server.job_id, summarize(point), sorted(point.unreadable), damaged)


def _is_damaged(history: History, manifest: DiskManifest) -> bool:
    return any(history.damaged(layer.backup_id, manifest.disk) for layer in manifest.layers)


def summarize(point: Point, quiesce_seconds: float = 0.0) -> BackupResult:
    """Return a backup's result from its manifests: what a job reports at its end, and a reindex years later."""
    server = point.server
    needed = {
        layer.backup_id: None
        for manifest in point.disks.values()
        for layer in manifest.layers
        if layer.backup_id != server.backup_id
    }
    return BackupResult(
        backup_id=server.backup_id,
        create_time=server.create_time,
        consistency=server.consistency_reached,
        disks=[
            DiskResult(
                one.disk, one.type, one.chain_id, one.parent_backup_id, one.size_bytes, one.plain_bytes,
                one.stored_bytes, one.sha256, one.reason,
            )
            for one in server.disks
        ],
        skipped=[SkippedResult(one.disk, one.reason, one.detail) for one in server.skipped],
        needed_backup_ids=[*sorted(needed), server.backup_id],
        manifest_digest=point.digest,
        encrypted=server.key_id != "",
        domain_uuid=server.domain_uuid,
        domain_name=server.domain_name,
        path=names.backup_folder(server.server_id, server.backup_id),
        quiesce_seconds=quiesce_seconds,
    )  # fmt: skip
