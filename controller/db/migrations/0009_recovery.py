"""Recovery: what was reconciled in which epoch, how far the database has come, and in which epoch a hypervisor was heard."""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Reconciliation(peewee.Model):
    storage_id = TextField()
    hypervisor_id = TextField()
    epoch = BigIntegerField()
    end_time = BigIntegerField(null=True)
    try_time = BigIntegerField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("storage_id", "hypervisor_id")
        legacy_table_names = False


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx((Reconciliation,)):
        db.create_tables((Reconciliation,))
    migrator.migrate(
        migrator.add_column("installation", "mark", BigIntegerField(default=0)),
        migrator.add_column("hypervisor", "greeted_epoch", BigIntegerField(default=0)),
    )
