"""The tables. What a column means is said here; how they came to be is in `migrations/`.

    hypervisor ─┬─ domain                server ── backup ─┬─ backup_disk        storage ─┬─ secret
                ├─ outbox_command                          └─ backup_need                 └─ storage_key
                ├─ agent_journal ── agent_event
                └─ slot                  job ─┬─ job_log         lease ── lease_hold

Ids are text (UUIDv7). A row points to another table by id and seldom by foreign key: jobs and backups outlive servers,
storages and hypervisors, and an index that `reindex` rebuilds must take what the storage says. Foreign keys stand where the
rows end together. Enum values are the lower-case text of the protos; "" means not set. Portable: BIGINT and TEXT only.
"""

from typing import TYPE_CHECKING

import peewee
from peewee import BigAutoField, BigIntegerField, BlobField, BooleanField, DoubleField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField

if TYPE_CHECKING:
    from collections.abc import Iterable

proxy = peewee.DatabaseProxy()


def _id() -> "TextField[str]":
    return TextField(primary_key=True)


def _text() -> "TextField[str]":
    return TextField(default="")


def _number() -> "BigIntegerField[int]":
    return BigIntegerField(default=0)


class Table(peewee.Model):
    class Meta:
        database = proxy
        legacy_table_names = False


class Installation(Table):
    """One row: who we are. `epoch` grows when a lost controller is restored."""

    number = BigIntegerField(primary_key=True)  # always 1
    installation_id = TextField()
    epoch = BigIntegerField()
    create_time = TimeField()


class Hypervisor(Table):
    """A host that enrolled. `pending_serial` is a renewed certificate that was not used yet."""

    hypervisor_id = _id()
    name = TextField(unique=True)
    create_time = TimeField()
    banned = BooleanField(default=False)
    certificate_serial = _text()
    pending_serial = _text()
    certificate_expire_time = OptionalTimeField()
    agent_version = _text()
    protocol_version = _number()
    boot_id = _text()
    session_id = _text()
    session_count = _number()
    last_contact_time = OptionalTimeField()
    clock_offset_microseconds = BigIntegerField(null=True)
    capabilities = JsonField(null=True)
    scratch_free_bytes = _number()
    load = DoubleField(default=0.0)
    inventory_time = OptionalTimeField()


class EnrollmentToken(Table):
    token_hash = _id()
    hypervisor_id = TextField()
    name = TextField(index=True)
    renew = BooleanField()
    create_time = TimeField()
    expire_time = TimeField()
    use_time = OptionalTimeField()


class Domain(Table):
    """What a hypervisor last reported; replaced as a whole by each inventory."""

    hypervisor_id = TextField()
    domain_uuid = TextField()
    name = TextField()
    state = _text()
    guest_agent = _text()
    disks = JsonField()  # JSON forms of Disk

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "domain_uuid")


class Server(Table):
    """A customer's virtual server. `version` grows with each change (the etag)."""

    server_id = _id()
    external_id = _text()
    name = TextField(index=True)
    hypervisor_id = TextField(index=True)
    domain_uuid = TextField()
    create_time = TimeField()
    delete_time = OptionalTimeField()
    version = BigIntegerField(default=1)


# Among servers that live; the panel may use an id again after it deleted a server, and gets another server then (N1).
Server.add_index(
    Server.index(Server.external_id, unique=True, name="server_live_external_id").where(
        Server.delete_time.is_null() & (Server.external_id != "")
    )
)
Server.add_index(
    Server.index(Server.hypervisor_id, Server.domain_uuid, unique=True, name="server_live_domain").where(
        Server.delete_time.is_null() & (Server.hypervisor_id != "")
    )
)


class Storage(Table):
    storage_id = _id()
    name = TextField(unique=True)
    type = TextField()
    config = JsonField()  # JSON form of LocalConfig or SftpConfig
    compression = JsonField()
    limits = JsonField()
    encryption_enabled = BooleanField(default=False)
    key_id = _text()
    enabled = BooleanField(default=True)
    read_only = BooleanField(default=False)
    repository_id = TextField()
    create_time = TimeField()
    update_time = TimeField()
    version = BigIntegerField(default=1)


class Secret(Table):
    """A sealed secret of a row of another table (S28). `box` is bound to table, row and name."""

    table_name = TextField()
    row_id = TextField()
    name = TextField()
    box = BlobField()
    fingerprint = TextField()
    update_time = TimeField()

    class Meta:
        primary_key = peewee.CompositeKey("table_name", "row_id", "name")


class StorageKey(Table):
    """A storage's key: sealed under the master key for daily work, and wrapped by its passphrase (the text under `keys/`)."""

    key_id = _id()
    storage_id = TextField(index=True)
    box = BlobField()
    wrapped = TextField()
    create_time = TimeField()


class AccessToken(Table):
    access_token_id = _id()
    name = TextField(index=True)
    scope = TextField()
    secret_hash = TextField(unique=True)
    server_ids = JsonField(default=list)
    create_time = TimeField()
    expire_time = OptionalTimeField()
    revoke_time = OptionalTimeField()
    last_use_time = OptionalTimeField()
    creator = _text()


AccessToken.add_index(
    AccessToken.index(AccessToken.name, unique=True, name="access_token_live_name").where(
        AccessToken.revoke_time.is_null()
    )
)


class Job(Table):
    """One piece of work. `spec` is what was asked, without secrets; `wait` says what a queued one waits for."""

    job_id = _id()
    type = TextField()
    state = TextField()
    server_id = _text()
    storage_id = _text()
    hypervisor_id = TextField()
    backup_id = _text()
    spec = JsonField()
    requester = _text()
    request_id = TextField(null=True, unique=True)
    request_hash = _text()
    attempt = BigIntegerField(default=1)
    generation = _number()
    epoch = _number()
    version = BigIntegerField(default=1)
    create_time = TimeField()
    dispatch_time = OptionalTimeField()
    start_time = OptionalTimeField()
    end_time = OptionalTimeField()
    cancel_time = OptionalTimeField()
    cancel_reason = _text()
    progress = JsonField(null=True)
    failure = JsonField(null=True)
    warnings = JsonField(default=list)
    result = JsonField(null=True)
    log_bytes = _number()

    class Meta:
        indexes = ((("state", "hypervisor_id"), False), (("server_id",), False), (("storage_id",), False))


class JobLog(Table):
    job = peewee.ForeignKeyField(Job, on_delete="CASCADE", index=False)
    attempt = BigIntegerField()
    sequence = BigIntegerField()
    time = TimeField()
    level = TextField()
    message = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("job", "attempt", "sequence")


class Lease(Table):
    """Who has a resource: one job for itself (`holder`), or `shared` jobs together. `generation` grows with each claim."""

    resource = _id()
    holder = _text()
    shared = _number()
    generation = _number()


class LeaseHold(Table):
    """Which job holds which lease, and how; the other side of `lease`, in the same transaction."""

    job_id = TextField()
    resource = TextField(index=True)
    exclusive = BooleanField()

    class Meta:
        primary_key = peewee.CompositeKey("job_id", "resource")


class Slot(Table):
    """A place to work at on a hypervisor; a cap is the number of its slots."""

    hypervisor_id = TextField()
    number = BigIntegerField()
    job_id = TextField(default="", index=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "number")


class OutboxCommand(Table):
    """A command until the agent has it. Holds no secret: its body is made from the job when it is sent."""

    sequence = BigAutoField()
    command_id = TextField(unique=True)
    hypervisor_id = TextField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    kind = TextField()  # "run" or "cancel"
    create_time = TimeField()
    send_time = OptionalTimeField()  # first time it may have left us
    settle_time = OptionalTimeField()  # the agent has it, or it is no longer wanted
    outcome = _text()  # "received" or "withdrawn"


OutboxCommand.add_index(
    OutboxCommand.index(OutboxCommand.hypervisor_id, OutboxCommand.sequence, name="outbox_command_pending").where(
        OutboxCommand.settle_time.is_null()
    )
)


class AgentJournal(Table):
    """How far a journal's events are stored. A closed journal went back in time; nothing more is taken from it."""

    hypervisor_id = TextField()
    journal_id = TextField()
    stored_sequence = _number()
    create_time = TimeField()
    update_time = TimeField()
    close_time = OptionalTimeField()

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id")


class AgentEvent(Table):
    """What an agent said, for the record; `outcome` is "applied", or why it changed nothing."""

    hypervisor_id = TextField()
    journal_id = TextField()
    sequence = BigIntegerField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    time = OptionalTimeField()
    store_time = TimeField()
    kind = TextField()
    outcome = TextField()
    body = JsonField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id", "sequence")


class Backup(Table):
    """A restore point, as its manifest or its job told. `hypervisor_id` is where it was made: a local folder is only there."""

    backup_id = _id()
    server_id = TextField(index=True)
    storage_id = TextField(index=True)
    hypervisor_id = _text()
    job_id = _text()
    create_time = TimeField()
    state = TextField()
    consistency = _text()
    encrypted = BooleanField(default=False)
    stored_bytes = _number()
    path = _text()
    domain_name = _text()
    domain_uuid = _text()
    manifest_digest = _text()
    skipped_disks = JsonField(default=list)
    adopt_job_id = _text()  # the reindex that found it first; "" for one of our own jobs
    see_time = OptionalTimeField()  # when a reindex found it last
    delete_time = (
        OptionalTimeField()
    )  # a job of ours deleted it; the row stays, so that an older reading does not bring it back


class BackupDisk(Table):
    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    disk = TextField()
    position = BigIntegerField()
    type = TextField()
    chain_id = TextField(index=True)
    parent_backup_id = _text()
    size_bytes = _number()
    data_bytes = _number()
    stored_bytes = _number()
    sha256 = _text()
    fallback_reason = _text()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "disk")


class BackupNeed(Table):
    """`backup` cannot be restored without `needed_backup_id` (never itself). `position` counts from the oldest."""

    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    needed_backup_id = TextField(index=True)
    position = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "needed_backup_id")


class Audit(Table):
    """Who did what (N5)."""

    sequence = BigAutoField()
    time = TimeField(index=True)
    token_id = _text()
    token_name = _text()
    method = TextField()
    resource = _text()
    outcome = _text()
    peer = _text()
    detail = JsonField(null=True)


class Event(Table):
    """What happened, in order, for those who watch (N6)."""

    sequence = BigAutoField()
    time = TimeField(index=True)
    kind = TextField()
    job_id = _text()
    server_id = _text()
    storage_id = _text()
    hypervisor_id = _text()
    body = JsonField(null=True)


ALL: "Iterable[type[Table]]" = (
    Installation, Hypervisor, EnrollmentToken, Domain, Server, Storage, Secret, StorageKey, AccessToken, Job, JobLog, Lease,
    LeaseHold, Slot, OutboxCommand, AgentJournal, AgentEvent, Backup, BackupDisk, BackupNeed, Audit, Event,
)  # fmt: skip
