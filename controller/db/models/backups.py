"""The index of restore points."""

import peewee
from peewee import BigIntegerField, BooleanField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Backup(Table):
    """A restore point, as its manifest or its job told. `hypervisor_id` is where it was made: a local folder is only there."""

    backup_id = id_field()
    server_id = TextField()
    storage_id = TextField()
    hypervisor_id = text_field()
    job_id = TextField(default="", index=True)
    create_time = TimeField()
    state = TextField()
    consistency = text_field()
    encrypted = BooleanField(default=False)
    stored_bytes = number_field()
    path = text_field()
    domain_name = text_field()
    domain_uuid = text_field()
    manifest_digest = text_field()
    skipped_disks = JsonField(default=list)
    adopt_job_id = text_field()  # the reindex that found it first; "" for one of our own jobs
    see_time = OptionalTimeField()  # when a reindex found it last
    delete_time = (
        OptionalTimeField()
    )  # a job of ours deleted it; the row stays, so that an older reading does not bring it back

    class Meta:
        indexes = (
            (("server_id", "backup_id"), False),
            (("storage_id", "backup_id"), False),
            (("job_id",), False),
        )


Backup.add_index(
    Backup.index(Backup.storage_id, Backup.hypervisor_id, name="backup_maker").where(Backup.delete_time.is_null())
)
# What storages and catalog do not agree on is told in every overview, and is nothing nearly always.
Backup.add_index(
    Backup.index(Backup.state, Backup.storage_id, Backup.server_id, name="backup_flawed").where(
        (Backup.state != "available") & Backup.delete_time.is_null()
    )
)
Backup.add_index(
    Backup.index(Backup.adopt_job_id, name="backup_adopted").where(
        (Backup.adopt_job_id != "") & Backup.delete_time.is_null()
    )
)
# All that retention, and whoever extends a server's chains, asks of the backups themselves: no row is read for it.
Backup.add_index(
    Backup.index(
        Backup.storage_id,
        Backup.server_id,
        Backup.create_time,
        Backup.backup_id,
        Backup.state,
        name="backup_history",
    ).where(Backup.delete_time.is_null())
)


class BackupDisk(Table):
    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    disk = TextField()
    position = BigIntegerField()
    type = TextField()
    chain_id = TextField(index=True)
    parent_backup_id = text_field()
    size_bytes = number_field()
    data_bytes = number_field()
    stored_bytes = number_field()
    sha256 = text_field()
    fallback_reason = text_field()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "disk")
        indexes = ((("type", "backup"), False),)


class BackupNeed(Table):
    """`backup` cannot be restored without `needed_backup_id` (never itself). `position` counts from the oldest."""

    backup = peewee.ForeignKeyField(Backup, on_delete="CASCADE", index=False)
    needed_backup_id = TextField(index=True)
    position = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("backup", "needed_backup_id")
