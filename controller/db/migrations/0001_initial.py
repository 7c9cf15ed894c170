"""The first schema: everything that single jobs on hypervisors need.

A frozen copy of the tables as they were; nothing here changes any more, and later files build upon it.
"""

from typing import Any

import peewee
from peewee import BigAutoField, BigIntegerField, BlobField, BooleanField, DoubleField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class Installation(Table):
    number = BigIntegerField(primary_key=True)
    installation_id = TextField()
    epoch = BigIntegerField()
    create_time = BigIntegerField()


class Hypervisor(Table):
    hypervisor_id = TextField(primary_key=True)
    name = TextField(unique=True)
    create_time = BigIntegerField()
    banned = BooleanField()
    certificate_serial = TextField()
    pending_serial = TextField()
    certificate_expire_time = BigIntegerField(null=True)
    agent_version = TextField()
    protocol_version = BigIntegerField()
    boot_id = TextField()
    session_id = TextField()
    session_count = BigIntegerField()
    last_contact_time = BigIntegerField(null=True)
    clock_offset_microseconds = BigIntegerField(null=True)
    capabilities = TextField(null=True)
    scratch_free_bytes = BigIntegerField()
    load = DoubleField()
    inventory_time = BigIntegerField(null=True)


class EnrollmentToken(Table):
    token_hash = TextField(primary_key=True)
    hypervisor_id = TextField()
    name = TextField(index=True)
    renew = BooleanField()
    create_time = BigIntegerField()
    expire_time = BigIntegerField()
    use_time = BigIntegerField(null=True)


class Domain(Table):
    hypervisor_id = TextField()
    domain_uuid = TextField()
    name = TextField()
    state = TextField()
    guest_agent = TextField()
    disks = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "domain_uuid")


class Server(Table):
    server_id = TextField(primary_key=True)
    external_id = TextField()
    name = TextField(index=True)
    hypervisor_id = TextField(index=True)
    domain_uuid = TextField()
    create_time = BigIntegerField()
    delete_time = BigIntegerField(null=True)
    version = BigIntegerField()


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
    storage_id = TextField(primary_key=True)
    name = TextField(unique=True)
    type = TextField()
    config = TextField()
    compression = TextField()
    limits = TextField()
    encryption_enabled = BooleanField()
    key_id = TextField()
    enabled = BooleanField()
    read_only = BooleanField()
    repository_id = TextField()
    create_time = BigIntegerField()
    update_time = BigIntegerField()
    version = BigIntegerField()


class Secret(Table):
    table_name = TextField()
    row_id = TextField()
    name = TextField()
    box = BlobField()
    fingerprint = TextField()
    update_time = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("table_name", "row_id", "name")


class StorageKey(Table):
    key_id = TextField(primary_key=True)
    storage_id = TextField(index=True)
    box = BlobField()
    wrapped = TextField()
    create_time = BigIntegerField()


class AccessToken(Table):
    access_token_id = TextField(primary_key=True)
    name = TextField(index=True)
    scope = TextField()
    secret_hash = TextField(unique=True)
    server_ids = TextField()
    create_time = BigIntegerField()
    expire_time = BigIntegerField(null=True)
    revoke_time = BigIntegerField(null=True)
    last_use_time = BigIntegerField(null=True)
    creator = TextField()


AccessToken.add_index(
    AccessToken.index(AccessToken.name, unique=True, name="access_token_live_name").where(
        AccessToken.revoke_time.is_null()
    )
)


class Job(Table):
    job_id = TextField(primary_key=True)
    type = TextField()
    state = TextField()
    server_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    backup_id = TextField()
    spec = TextField()
    requester = TextField()
    request_id = TextField(null=True, unique=True)
    request_hash = TextField()
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    version = BigIntegerField()
    create_time = BigIntegerField()
    dispatch_time = BigIntegerField(null=True)
    start_time = BigIntegerField(null=True)
    end_time = BigIntegerField(null=True)
    cancel_time = BigIntegerField(null=True)
    cancel_reason = TextField()
    progress = TextField(null=True)
    failure = TextField(null=True)
    warnings = TextField()
    result = TextField(null=True)
    log_bytes = BigIntegerField()

    class Meta:
        indexes = ((("state", "hypervisor_id"), False), (("server_id",), False), (("storage_id",), False))


class JobLog(Table):
    job = peewee.ForeignKeyField(Job, on_delete="CASCADE", index=False)
    attempt = BigIntegerField()
    sequence = BigIntegerField()
    time = BigIntegerField()
    level = TextField()
    message = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("job", "attempt", "sequence")


class Lease(Table):
    resource = TextField(primary_key=True)
    holder = TextField()
    shared = BigIntegerField()
    generation = BigIntegerField()


class LeaseHold(Table):
    job_id = TextField()
    resource = TextField(index=True)
    exclusive = BooleanField()

    class Meta:
        primary_key = peewee.CompositeKey("job_id", "resource")


class Slot(Table):
    hypervisor_id = TextField()
    number = BigIntegerField()
    job_id = TextField(index=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "number")


class OutboxCommand(Table):
    sequence = BigAutoField()
    command_id = TextField(unique=True)
    hypervisor_id = TextField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    kind = TextField()
    create_time = BigIntegerField()
    send_time = BigIntegerField(null=True)
    settle_time = BigIntegerField(null=True)
    outcome = TextField()


OutboxCommand.add_index(
    OutboxCommand.index(OutboxCommand.hypervisor_id, OutboxCommand.sequence, name="outbox_command_pending").where(
        OutboxCommand.settle_time.is_null()
    )
)


class AgentJournal(Table):
    hypervisor_id = TextField()
    journal_id = TextField()
    stored_sequence = BigIntegerField()
    create_time = BigIntegerField()
    update_time = BigIntegerField()
    close_time = BigIntegerField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id")


class AgentEvent(Table):
    hypervisor_id = TextField()
    journal_id = TextField()
    sequence = BigIntegerField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    time = BigIntegerField(null=True)
    store_time = BigIntegerField()
    kind = TextField()
    outcome = TextField()
    body = TextField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id", "sequence")


class Backup(Table):
    backup_id = TextField(primary_key=True)
    server_id = TextField(index=True)
    storage_id = TextField(index=True)
    hypervisor_id = TextField()
    job_id = TextField()
    create_time = BigIntegerField()
    state = TextField()
    consistency = TextField()
    encrypted = BooleanField()
    stored_bytes = BigIntegerField()
    path = TextField()
    domain_name = TextField()
    domain_uuid = TextField()
    manifest_digest = TextField()
    skipped_disks = TextField()
    adopt_job_id = TextField()
    see_time = BigIntegerField(null=True)
    delete_time = BigIntegerField(null=True)


class BackupDisk(Table):
    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    disk = TextField()
    position = BigIntegerField()
    type = TextField()
    chain_id = TextField(index=True)
    parent_backup_id = TextField()
    size_bytes = BigIntegerField()
    data_bytes = BigIntegerField()
    stored_bytes = BigIntegerField()
    sha256 = TextField()
    fallback_reason = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "disk")


class BackupNeed(Table):
    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    needed_backup_id = TextField(index=True)
    position = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "needed_backup_id")


class Audit(Table):
    sequence = BigAutoField()
    time = BigIntegerField(index=True)
    token_id = TextField()
    token_name = TextField()
    method = TextField()
    resource = TextField()
    outcome = TextField()
    peer = TextField()
    detail = TextField(null=True)


class Event(Table):
    sequence = BigAutoField()
    time = BigIntegerField(index=True)
    kind = TextField()
    job_id = TextField()
    server_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    body = TextField(null=True)


ALL = (
    Installation,
    Hypervisor,
    EnrollmentToken,
    Domain,
    Server,
    Storage,
    Secret,
    StorageKey,
    AccessToken,
    Job,
    JobLog,
    Lease,
    LeaseHold,
    Slot,
    OutboxCommand,
    AgentJournal,
    AgentEvent,
    Backup,
    BackupDisk,
    BackupNeed,
    Audit,
    Event,
)


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx(ALL):
        db.create_tables(ALL)
