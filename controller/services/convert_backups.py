"""Restore points and their chains as messages."""

from clients.gen.backupmanager.v1 import (
    backup_pb2,
    disk_pb2,
)
from controller.backups import Backup
from controller.rules.tree import Chain
from controller.services import convert


def backup(record: Backup) -> backup_pb2.Backup:
    disks = [
        disk_pb2.DiskBackup(
            disk=one.disk,
            type=convert.enum_number(disk_pb2.BackupType.DESCRIPTOR, one.type),
            chain_id=one.chain_id,
            parent_backup_id=one.parent_backup_id,
            size_bytes=one.size_bytes,
            data_bytes=one.data_bytes,
            stored_bytes=one.stored_bytes,
            sha256=one.sha256,
            fallback_reason=one.fallback_reason,
        )
        for one in record.disks
    ]
    return backup_pb2.Backup(
        backup_id=record.backup_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        job_id=record.job_id,
        create_time=convert.time(record.create_time),
        state=convert.enum_number(backup_pb2.BackupState.DESCRIPTOR, record.state),
        disks=disks,
        skipped_disks=convert.all_from_json(disk_pb2.SkippedDisk, record.skipped_disks),
        consistency=convert.enum_number(disk_pb2.ConsistencyReached.DESCRIPTOR, record.consistency),
        encrypted=record.encrypted,
        stored_bytes=record.stored_bytes,
        path=record.path,
        domain_name=record.domain_name,
    )


def backup_chain(record: Chain, storage_name: str) -> backup_pb2.BackupChain:
    return backup_pb2.BackupChain(
        disk=record.disk,
        storage_id=record.storage_id,
        storage_name=storage_name,
        chain_id=record.chain_id,
        copies=record.copies,
        current=record.current,
        disk_removed=record.disk_removed,
        backup_count=record.backup_count,
        stored_bytes=record.stored_bytes,
        start_time=convert.time(record.start_time),
        last_time=convert.time(record.last_time),
        records=[
            backup_pb2.ChainRecord(
                backup_id=one.backup_id,
                create_time=convert.time(one.create_time),
                type=convert.enum_number(disk_pb2.BackupType.DESCRIPTOR, one.type),
                state=convert.enum_number(backup_pb2.BackupState.DESCRIPTOR, one.state),
                parent_backup_id=one.parent_backup_id,
                size_bytes=one.size_bytes,
                data_bytes=one.data_bytes,
                stored_bytes=one.stored_bytes,
                fallback_reason=one.fallback_reason,
            )
            for one in record.records
        ],
    )
