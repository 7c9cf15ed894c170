"""The tables. What a column means is said here; how they came to be is in `migrations/`.

    hypervisor ─┬─ domain                server ─┬─ backup ─┬─ backup_disk       storage ─┬─ secret
                ├─ outbox_command    package ┘   │          └─ backup_need                └─ storage_key
                ├─ session_owner
                ├─ agent_journal ── agent_event  └─ server_claim
                ├─ slot                  job ─┬─ job_log         lease ── lease_hold
                └─ schedule

Ids are text (UUIDv7). A row points to another table by id and seldom by foreign key: jobs and backups outlive servers,
storages and hypervisors, and an index that `reindex` rebuilds must take what the storage says. Foreign keys stand where the
rows end together. Enum values are the lower-case text of the protos; "" means not set. Portable: BIGINT and TEXT only.
"""

from controller.db.models.backups import Backup, BackupDisk, BackupNeed
from controller.db.models.base import Table, proxy
from controller.db.models.batches import Batch, Turn
from controller.db.models.events import (
    Event,
    EventHorizon,
    EventPending,
    HypervisorPresence,
    SystemLog,
    Webhook,
    WebhookDelivery,
)
from controller.db.models.hosts import Domain, EnrollmentToken, Hypervisor
from controller.db.models.records import AccessToken, Audit, Installation
from controller.db.models.recovery import Bundle, BundlePart, Reconciliation
from controller.db.models.retention import PruneCandidate, PruneRound, Purge
from controller.db.models.schedules import GlobalSettings, Schedule
from controller.db.models.servers import Package, Server, ServerClaim
from controller.db.models.sessions import AgentEvent, AgentJournal, OutboxCommand, SessionOwner
from controller.db.models.standing import (
    BackupTotal,
    ServerFailure,
    StorageCheck,
    StorageHealth,
    StorageTotal,
    UnprotectedServer,
)
from controller.db.models.storages import Secret, Storage, StorageKey
from controller.db.models.tickets import Ticket
from controller.db.models.work import Job, JobLog, Lease, LeaseHold, Slot

ALL: tuple[type[Table], ...] = tuple(Table.__subclasses__())

__all__ = [
    "ALL",
    "AccessToken",
    "AgentEvent",
    "AgentJournal",
    "Audit",
    "Backup",
    "BackupDisk",
    "BackupNeed",
    "BackupTotal",
    "Batch",
    "Bundle",
    "BundlePart",
    "Domain",
    "EnrollmentToken",
    "Event",
    "EventHorizon",
    "EventPending",
    "GlobalSettings",
    "Hypervisor",
    "HypervisorPresence",
    "Installation",
    "Job",
    "JobLog",
    "Lease",
    "LeaseHold",
    "OutboxCommand",
    "Package",
    "PruneCandidate",
    "PruneRound",
    "Purge",
    "Reconciliation",
    "Schedule",
    "Secret",
    "Server",
    "ServerClaim",
    "ServerFailure",
    "SessionOwner",
    "Slot",
    "Storage",
    "StorageCheck",
    "StorageHealth",
    "StorageKey",
    "StorageTotal",
    "SystemLog",
    "Table",
    "Ticket",
    "Turn",
    "UnprotectedServer",
    "Webhook",
    "WebhookDelivery",
    "proxy",
]
