"""How things stand: checks of storages, totals of backups, servers that fail; and the indexes that lists and the overview need.

What is there already is added up once.
"""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class StorageCheck(Table):
    storage_id = TextField()
    hypervisor_id = TextField(index=True)
    state = TextField()
    check_time = BigIntegerField(null=True)
    try_time = BigIntegerField(null=True)
    job_id = TextField()
    failure = TextField(null=True)
    failure_count = BigIntegerField()
    fail_time = BigIntegerField(null=True)
    latency_microseconds = BigIntegerField()
    total_bytes = BigIntegerField()
    free_bytes = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("storage_id", "hypervisor_id")


class StorageHealth(Table):
    storage_id = TextField(primary_key=True)
    state = TextField()
    detail = TextField()
    change_time = BigIntegerField()
    check_time = BigIntegerField(null=True)
    hypervisor_id = TextField()
    failure = TextField(null=True)
    healthy_count = BigIntegerField()
    unhealthy_count = BigIntegerField()
    total_bytes = BigIntegerField()
    free_bytes = BigIntegerField()
    measure_time = BigIntegerField(null=True)
    measure_hypervisor_id = TextField()


class BackupTotal(Table):
    server_id = TextField()
    storage_id = TextField()
    backup_count = BigIntegerField()
    stored_bytes = BigIntegerField()
    last_backup_time = BigIntegerField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("server_id", "storage_id")
        indexes = ((("storage_id", "stored_bytes", "backup_count", "last_backup_time", "server_id"), False),)


class UnprotectedServer(Table):
    server_id = TextField(primary_key=True)
    begin_time = BigIntegerField(index=True)


class ServerFailure(Table):
    server_id = TextField(primary_key=True)
    failure_count = BigIntegerField(index=True)
    first_time = BigIntegerField()
    last_time = BigIntegerField()
    job_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    failure = TextField(null=True)


class Job(Table):
    """What of it is indexed."""

    job_id = TextField(primary_key=True)
    type = TextField()
    state = TextField()
    server_id = TextField()
    storage_id = TextField()
    hypervisor_id = TextField()
    end_time = BigIntegerField(null=True)


class Server(Table):
    """What of it is indexed."""

    server_id = TextField(primary_key=True)
    delete_time = BigIntegerField(null=True)


class Backup(Table):
    """What of it is indexed."""

    backup_id = TextField(primary_key=True)
    server_id = TextField()
    storage_id = TextField()
    job_id = TextField()


class BackupDisk(Table):
    """What of it is indexed."""

    backup = peewee.ForeignKeyField(Backup, index=False)
    disk = TextField()
    type = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "disk")


TABLES = (StorageCheck, StorageHealth, BackupTotal, UnprotectedServer, ServerFailure)
WITHOUT_ORDER = (
    "job_server_id",
    "job_storage_id",
    "backup_server_id",
    "backup_storage_id",
)  # the new ones do their work
INDEXES = (
    Job.index(Job.state, Job.job_id),
    Job.index(Job.type, Job.job_id),
    Job.index(Job.server_id, Job.job_id),
    Job.index(Job.storage_id, Job.job_id),
    Job.index(Job.hypervisor_id, Job.job_id),
    Job.index(Job.state, Job.end_time),
    Server.index(Server.delete_time, name="server_deleted").where(Server.delete_time.is_null(False)),
    Backup.index(Backup.server_id, Backup.backup_id),
    Backup.index(Backup.storage_id, Backup.backup_id),
    Backup.index(Backup.job_id),
    BackupDisk.index(BackupDisk.type, BackupDisk.backup),
)
TOTALS = """
    INSERT INTO backup_total (server_id, storage_id, backup_count, stored_bytes, last_backup_time)
    SELECT server_id, storage_id, COUNT(*), COALESCE(SUM(stored_bytes), 0),
           MAX(CASE WHEN state = 'available' THEN create_time END)
    FROM backup WHERE delete_time IS NULL GROUP BY server_id, storage_id
"""
UNPROTECTED = """
    INSERT INTO unprotected_server (server_id, begin_time)
    SELECT server_id, create_time FROM server WHERE delete_time IS NULL AND NOT EXISTS
        (SELECT 1 FROM backup_total total WHERE total.server_id = server.server_id AND last_backup_time IS NOT NULL)
"""


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx((*TABLES, Job, Server, Backup, BackupDisk)):
        db.create_tables(TABLES)
        for name in WITHOUT_ORDER:
            db.execute_sql(f'DROP INDEX "{name}"')
        for index in INDEXES:
            db.execute(index)
    db.execute_sql(TOTALS)
    db.execute_sql(UNPROTECTED)
