"""A fleet as an overview tells it: one of everything, for the screens."""

from clients.gen.backupmanager.v1 import backup_pb2, disk_pb2, failure_pb2, overview_pb2, storage_pb2
from engine.units import GIB, MIB
from tests.clients import rows

TIB = 1 << 40
_FULL = failure_pb2.Failure(reason="STORAGE_FULL", message="storage offsite is full: write of 0000.data", step="write")


def overview() -> overview_pb2.Overview:
    return overview_pb2.Overview(
        time=rows.ago(seconds=0),
        counts=overview_pb2.OverviewCounts(
            running_job_count=2, waiting_job_count=5, running_batch_count=1, server_count=120, protected_server_count=117,
            failing_server_count=1, unprotected_server_count=3, pending_purge_count=1, backup_count=3480,
            backup_bytes=41 * TIB, schedule_count=4, enabled_schedule_count=3, overdue_schedule_count=1, hypervisor_count=4,
            online_hypervisor_count=3, storage_count=2, unhealthy_storage_count=1, missing_backup_count=2,
            damaged_backup_count=1, adopted_backup_count=4,
        ),
        recent_batches=[
            overview_pb2.BatchSummary(
                batch_id="b1", state="partial", hypervisor_id=rows.HV1, hypervisor_name="kvm1", storage_name="offsite",
                server_count=30, completed_count=29, failed_count=1, start_time=rows.ago(hours=9),
                end_time=rows.ago(hours=8),
            ),
        ],
        upcoming=[
            overview_pb2.UpcomingRun(
                schedule_id="s1", hypervisor_name="kvm2", storage_name="nas", due_time=rows.ago(hours=2), overdue=True
            ),
            overview_pb2.UpcomingRun(
                schedule_id="s2", hypervisor_name="kvm1", storage_name="offsite", due_time=rows.ago(hours=-6), online=True
            ),
        ],
        recent_errors=[
            overview_pb2.RecentError(
                job_id=rows.FAILED_JOB, type="backup", time=rows.ago(hours=4), server_name="db1", failure=_FULL
            )
        ],
        failing_servers=[
            overview_pb2.FailingServer(
                server_id=rows.DB1, server_name="db1", hypervisor_name="kvm2", failure_count=4, failure=_FULL,
                last_backup_time=rows.ago(days=4),
            )
        ],
        unprotected_servers=[
            overview_pb2.UnprotectedServer(
                server_id="x", server_name="new\x1b[31m", hypervisor_name="kvm1", create_time=rows.ago(hours=1)
            )
        ],
        pending_purges=[
            overview_pb2.PendingPurge(
                server_id="y", server_name="old1", purge_time=rows.ago(days=-3), backup_count=7, stored_bytes=9 * GIB
            )
        ],
        discrepancies=[
            overview_pb2.Discrepancy(
                server_id=rows.DB1, server_name="db1", storage_id=rows.OFFSITE, storage_name="offsite", missing_count=2,
                damaged_count=1,
            ),
            overview_pb2.Discrepancy(
                server_id="z", storage_id=rows.OFFSITE, storage_name="offsite", adopted_count=4
            ),
        ],
        storages=[
            overview_pb2.StorageSummary(
                storage_id=rows.NAS, name="nas", type="local", enabled=True, backup_count=12,
                health=storage_pb2.StorageHealth(state=storage_pb2.HEALTH_STATE_UNHEALTHY),
                usage=storage_pb2.StorageUsage(backup_bytes=2 * GIB),
            ),
            overview_pb2.StorageSummary(
                storage_id=rows.OFFSITE, name="offsite", type="sftp", enabled=True, backup_count=3468,
                health=storage_pb2.StorageHealth(state=storage_pb2.HEALTH_STATE_HEALTHY),
                usage=storage_pb2.StorageUsage(
                    total_bytes=100 * TIB, free_bytes=30 * TIB, backup_bytes=40 * TIB, other_bytes=30 * TIB
                ),
                last_backup_time=rows.ago(minutes=3),
            ),
        ],
    )  # fmt: skip


def chains() -> list[backup_pb2.BackupChain]:
    def record(kind: disk_pb2.BackupType.ValueType, days: float, **more: str) -> backup_pb2.ChainRecord:
        return backup_pb2.ChainRecord(
            backup_id=f"01938a00-0000-7000-8000-{int(days * 10):012}", create_time=rows.ago(days=days), type=kind,
            state=backup_pb2.BACKUP_STATE_AVAILABLE, stored_bytes=400 * MIB, **more,  # type: ignore[arg-type]  # texts only
        )  # fmt: skip

    full, incremental, copy = disk_pb2.BACKUP_TYPE_FULL, disk_pb2.BACKUP_TYPE_INCREMENTAL, disk_pb2.BACKUP_TYPE_COPY
    common = {"storage_name": "offsite", "backup_count": 2, "stored_bytes": 800 * MIB}
    return [
        backup_pb2.BackupChain(
            disk="vda", chain_id="01938a00-0000-7000-8000-0000000000c2", current=True, start_time=rows.ago(days=2),
            records=[record(full, 2), record(incremental, 1)], **common,  # type: ignore[arg-type]
        ),
        backup_pb2.BackupChain(
            disk="vda", copies=True, start_time=rows.ago(days=5), records=[record(copy, 5), record(copy, 4)], **common  # type: ignore[arg-type]
        ),
        backup_pb2.BackupChain(
            disk="vdb", chain_id="01938a00-0000-7000-8000-0000000000d1", disk_removed=True, start_time=rows.ago(days=30),
            records=[record(full, 30, fallback_reason="first"), record(incremental, 29)], **common,  # type: ignore[arg-type]
        ),
    ]  # fmt: skip
