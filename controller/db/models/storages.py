"""Storages, their keys, and secrets of any row."""

import peewee
from peewee import BigIntegerField, BlobField, BooleanField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class Storage(Table):
    storage_id = id_field()
    name = TextField(unique=True)
    type = TextField()
    config = JsonField()  # JSON form of the config of its type
    compression = JsonField()
    limits = JsonField()
    encryption_enabled = BooleanField(default=False)
    key_id = text_field()
    enabled = BooleanField(default=True)
    read_only = BooleanField(default=False)
    repository_id = TextField()
    create_time = TimeField()
    update_time = TimeField()
    version = BigIntegerField(default=1)
    retention = JsonField(default=dict)  # a policy, see rules/retention.py; {} prunes nothing
    keep_last = BigIntegerField(default=2)
    delete_hypervisor_id = text_field()  # the only one that may delete; "" for any that uses the storage
    defaults = JsonField(null=True, default=dict)  # see `rules/settings.py`
    use_time = OptionalTimeField()  # when a job that may write there was first sent out; see proofs.py


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

    key_id = id_field()
    storage_id = TextField(index=True)
    box = BlobField()
    wrapped = TextField()
    create_time = TimeField()
