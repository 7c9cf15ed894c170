"""Recovery bundles on their way to a storage."""

from typing import Any

import peewee
from peewee import BigIntegerField, BlobField, TextField


class Bundle(peewee.Model):
    bundle_id = TextField(primary_key=True)
    storage_id = TextField(default="")
    hypervisor_id = TextField(default="")
    digest = TextField(default="")
    state = TextField()
    create_time = BigIntegerField()
    end_time = BigIntegerField(null=True)
    part_count = BigIntegerField(default=0)
    stored_bytes = BigIntegerField(default=0)
    failure = TextField(null=True)

    class Meta:
        legacy_table_names = False


class BundlePart(peewee.Model):
    bundle_id = TextField()
    number = BigIntegerField()
    data = BlobField()
    job_id = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("bundle_id", "number")
        legacy_table_names = False


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx((Bundle, BundlePart)):
        db.create_tables((Bundle, BundlePart))
