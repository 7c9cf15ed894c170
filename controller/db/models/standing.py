"""How things stand: what checks of storages found, what backups add up to, which servers fail.

All of it follows from jobs and backups, and is kept beside them so that an overview of 50,000 servers needs no look at each.
`controller/totals.py`, `controller/failing.py` and `controller/health.py` keep it up to date in the transaction of the change.
"""

import peewee
from peewee import BigIntegerField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, number_field, text_field


class StorageCheck(Table):
    """The last check of a storage from one hypervisor. `job_id` found it, or is at it now; `try_time` is its start."""

    storage_id = TextField()
    hypervisor_id = TextField(index=True)
    state = TextField()  # healthy, unhealthy, or "" before any check said something
    check_time = OptionalTimeField()
    try_time = OptionalTimeField()
    job_id = text_field()
    failure = JsonField(null=True)
    failure_count = number_field()
    fail_time = OptionalTimeField()  # of the first failure of those in a row
    latency_microseconds = number_field()
    total_bytes = number_field()
    free_bytes = number_field()

    class Meta:
        primary_key = peewee.CompositeKey("storage_id", "hypervisor_id")


class StorageHealth(Table):
    """What all checks of a storage say together (`rules/health.py`), as it was told last."""

    storage_id = TextField(primary_key=True)
    state = TextField()
    detail = text_field()
    change_time = TimeField()
    check_time = OptionalTimeField()
    hypervisor_id = text_field()
    failure = JsonField(null=True)
    healthy_count = number_field()
    unhealthy_count = number_field()
    total_bytes = number_field()
    free_bytes = number_field()
    measure_time = OptionalTimeField()
    measure_hypervisor_id = text_field()


class BackupTotal(Table):
    """What one server's backups on one storage add up to. No row for none."""

    server_id = TextField()
    storage_id = TextField()
    backup_count = BigIntegerField()
    stored_bytes = BigIntegerField()
    last_backup_time = OptionalTimeField()  # of the newest usable one

    class Meta:
        primary_key = peewee.CompositeKey("server_id", "storage_id")
        indexes = (
            (("storage_id", "stored_bytes", "server_id"), False),
            (("storage_id", "last_backup_time"), False),
        )


class StorageTotal(Table):
    """What lies on one storage: the sums of its rows of `backup_total`. None, or zeros, for nothing."""

    storage_id = TextField(primary_key=True)
    server_count = BigIntegerField()
    backup_count = BigIntegerField()
    stored_bytes = BigIntegerField()


class UnprotectedServer(Table):
    """A living server without any usable backup: never backed up, or none is left. `begin_time` is that of its registration."""

    server_id = TextField(primary_key=True)
    begin_time = TimeField(index=True)


class ServerFailure(Table):
    """A server whose last backup failed, and how many in a row did. No row for one whose last backup ended well."""

    server_id = TextField(primary_key=True)
    failure_count = BigIntegerField(index=True)
    first_time = TimeField()
    last_time = TimeField()
    job_id = TextField()
    storage_id = text_field()
    hypervisor_id = text_field()
    failure = JsonField(null=True)
