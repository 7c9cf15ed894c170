"""A small installation as the controller would show it: two hypervisors, two servers, two storages, a chain, some jobs."""

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.v1 import (
    access_token_pb2,
    backup_pb2,
    disk_pb2,
    failure_pb2,
    hypervisor_pb2,
    job_pb2,
    server_pb2,
    storage_pb2,
    ticket_pb2,
)
from engine.units import GIB, MIB

HV1, HV2 = "01938a00-0000-7000-8000-00000000000a", "01938a00-0000-7000-8000-00000000000b"
WEB1, DB1 = "01938a00-0000-7000-8000-000000000011", "01938a00-0000-7000-8000-000000000012"
OFFSITE, NAS = "01938a00-0000-7000-8000-000000000021", "01938a00-0000-7000-8000-000000000022"
FULL, INCREMENTAL = "01938a00-0000-7000-8000-000000000031", "01938a00-0000-7000-8000-000000000032"
JOB, FAILED_JOB = "01938a00-0000-7000-8000-000000000041", "01938a00-0000-7000-8000-000000000042"
ADMIN_TOKEN = "01938a00-0000-7000-8000-000000000051"
KEY_FINGERPRINT = "9f2c4e8a1b3d5f70"


def ago(**span: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) - timedelta(**span))
    return stamp


def hypervisors() -> list[hypervisor_pb2.Hypervisor]:
    one = hypervisor_pb2.Hypervisor(
        hypervisor_id=HV1,
        name="hv1",
        state=hypervisor_pb2.HYPERVISOR_STATE_ONLINE,
        agent_version="0.1.0",
        last_contact_time=ago(seconds=9),
        create_time=ago(days=40),
        certificate_expire_time=ago(days=-50),
        capabilities=hypervisor_pb2.HypervisorCapabilities(
            libvirt_version="9.0.0", qemu_version="7.2.22", storage_types=["local", "sftp"], protocol_version=1
        ),
        scratch_free_bytes=180 * GIB,
        load=1.37,
    )
    other = hypervisor_pb2.Hypervisor(
        hypervisor_id=HV2, name="hv2", state=hypervisor_pb2.HYPERVISOR_STATE_OFFLINE, last_contact_time=ago(hours=3)
    )
    other.clock_offset.FromTimedelta(timedelta(seconds=75.5))
    return [one, other]


def disks() -> list[disk_pb2.Disk]:
    return [
        disk_pb2.Disk(disk="vda", format="qcow2", size_bytes=40 * GIB, path="/var/lib/libvirt/images/web1.qcow2"),
        disk_pb2.Disk(disk="sda", size_bytes=0, unsupported_reason="a CD-ROM"),
    ]


def domains() -> list[hypervisor_pb2.Domain]:
    return [
        hypervisor_pb2.Domain(
            domain_uuid="6c1b5b1e-8f0e-4d0c-9d2f-0d5a0c1b2a3f",
            name="web1",
            state=hypervisor_pb2.DOMAIN_STATE_RUNNING,
            disks=disks(),
            guest_agent=hypervisor_pb2.GUEST_AGENT_STATE_CONNECTED,
            server_id=WEB1,
        ),
        hypervisor_pb2.Domain(
            domain_uuid="7d2c6c2f-8f0e-4d0c-9d2f-0d5a0c1b2a3f", name="spare", state=hypervisor_pb2.DOMAIN_STATE_SHUT_OFF
        ),
    ]


def servers() -> list[server_pb2.Server]:
    return [
        server_pb2.Server(
            server_id=WEB1,
            external_id="4711",
            name="web1",
            hypervisor_id=HV1,
            domain_uuid="6c1b5b1e-8f0e-4d0c-9d2f-0d5a0c1b2a3f",
            domain_name="web1",
            domain_state=hypervisor_pb2.DOMAIN_STATE_RUNNING,
            disks=disks(),
            guest_agent=hypervisor_pb2.GUEST_AGENT_STATE_CONNECTED,
            state=server_pb2.SERVER_STATE_ACTIVE,
            create_time=ago(days=30),
            last_backup_time=ago(minutes=3, seconds=5),
            etag="7",
        ),
        server_pb2.Server(
            server_id=DB1,
            name="db1",
            hypervisor_id=HV2,
            domain_state=hypervisor_pb2.DOMAIN_STATE_SHUT_OFF,
            state=server_pb2.SERVER_STATE_ACTIVE,
            create_time=ago(days=3),
        ),
    ]


def storages() -> list[storage_pb2.Storage]:
    return [
        storage_pb2.Storage(
            storage_id=NAS,
            name="nas",
            local=storage_pb2.LocalConfig(path="/mnt/nas/backups"),
            compression=storage_pb2.Compression(enabled=True, level=3),
            enabled=True,
            read_only=True,
            create_time=ago(days=90),
            etag="1",
        ),
        storage_pb2.Storage(
            storage_id=OFFSITE,
            name="offsite",
            sftp=storage_pb2.SftpConfig(
                host="backup.example.net",
                port=2222,
                username="bm",
                path="/srv/backups",
                host_key="ssh-ed25519 AAAAC3Nz",
            ),
            compression=storage_pb2.Compression(enabled=True, level=3, threads=2),
            encryption=storage_pb2.EncryptionStatus(enabled=True, key_id="k1"),
            limits=storage_pb2.StorageLimits(worker_threads=4, bandwidth_bytes_per_second=20 * MIB),
            enabled=True,
            secrets=[storage_pb2.SecretStatus(name="sftp_private_key", fingerprint=KEY_FINGERPRINT)],
            backup_count=2,
            stored_bytes=int(9.4 * GIB),
            create_time=ago(days=90),
            update_time=ago(days=2),
            etag="4",
        ),
    ]


def backups() -> list[backup_pb2.Backup]:
    def disk(**more: Any) -> disk_pb2.DiskBackup:
        return disk_pb2.DiskBackup(disk="vda", chain_id=FULL, size_bytes=40 * GIB, sha256="ab" * 32, **more)

    common = {
        "server_id": WEB1,
        "storage_id": OFFSITE,
        "state": backup_pb2.BACKUP_STATE_AVAILABLE,
        "consistency": disk_pb2.CONSISTENCY_REACHED_FROZEN,
        "encrypted": True,
        "domain_name": "web1",
    }
    newer = disk(
        type=disk_pb2.BACKUP_TYPE_INCREMENTAL, parent_backup_id=FULL, data_bytes=600 * MIB, stored_bytes=400 * MIB
    )
    older = disk(type=disk_pb2.BACKUP_TYPE_FULL, data_bytes=18 * GIB, stored_bytes=9 * GIB, fallback_reason="first")
    return [
        backup_pb2.Backup(
            backup_id=INCREMENTAL,
            job_id=JOB,
            create_time=ago(minutes=3, seconds=5),
            disks=[newer],
            stored_bytes=400 * MIB,
            path=f"servers/{WEB1}/{INCREMENTAL}",
            **common,  # type: ignore[arg-type]  # one dict for fields of several types
        ),
        backup_pb2.Backup(
            backup_id=FULL,
            create_time=ago(days=2),
            disks=[older],
            skipped_disks=[
                disk_pb2.SkippedDisk(
                    disk="sda", failure=failure_pb2.Failure(reason="DISK_UNSUPPORTED", message="sda is a CD-ROM")
                )
            ],
            stored_bytes=9 * GIB,
            path=f"servers/{WEB1}/{FULL}",
            **common,  # type: ignore[arg-type]
        ),
    ]


def jobs() -> list[job_pb2.Job]:
    return [
        job_pb2.Job(
            job_id=JOB,
            type=job_pb2.JOB_TYPE_BACKUP,
            state=job_pb2.JOB_STATE_QUEUED,
            server_id=WEB1,
            storage_id=OFFSITE,
            hypervisor_id=HV1,
            attempt=1,
            create_time=ago(minutes=1),
            requester="admin",
            version=1,
        ),
        job_pb2.Job(
            job_id=FAILED_JOB,
            type=job_pb2.JOB_TYPE_BACKUP,
            state=job_pb2.JOB_STATE_FAILED,
            server_id=DB1,
            storage_id=OFFSITE,
            hypervisor_id=HV2,
            attempt=2,
            create_time=ago(hours=5),
            start_time=ago(hours=5),
            end_time=ago(hours=4, minutes=50),
            failure=failure_pb2.Failure(
                reason="STORAGE_FULL", message="storage offsite is full: write of 0000.data", step="write"
            ),
            requester="panel",
            version=9,
        ),
    ]


def tokens() -> list[access_token_pb2.AccessToken]:
    return [
        access_token_pb2.AccessToken(
            access_token_id=ADMIN_TOKEN,
            name="admin",
            scope=access_token_pb2.ACCESS_SCOPE_ADMIN,
            create_time=ago(days=90),
            last_use_time=ago(minutes=1),
        ),
        access_token_pb2.AccessToken(
            access_token_id="01938a00-0000-7000-8000-000000000052",
            name="panel",
            scope=access_token_pb2.ACCESS_SCOPE_OPERATOR,
            create_time=ago(days=90),
            revoke_time=ago(days=1),
        ),
    ]


def log_entries() -> list[job_pb2.JobLogEntry]:
    words = [("info", "backup of web1 started"), ("warning", "guest agent is slow"), ("info", "commit")]
    return [
        job_pb2.JobLogEntry(sequence=number, time=ago(minutes=2), level=level, message=message)
        for number, (level, message) in enumerate(words, 1)
    ]


def tickets() -> list[ticket_pb2.RestoreTicket]:
    one = ticket_pb2.RestoreTicket(
        ticket_id=JOB,
        state=ticket_pb2.RESTORE_TICKET_STATE_ACTIVE,
        backup_id=FULL,
        server_id=WEB1,
        storage_id=OFFSITE,
        hypervisor_id=HV1,
        path=f"/var/lib/backup-manager/agent/tickets/{JOB}.json",
        disks=["vda"],
        requester="admin",
        create_time=ago(hours=2),
        expire_time=ago(hours=-22),
    )
    return [one]
