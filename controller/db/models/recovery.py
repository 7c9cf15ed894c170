"""What the controller knows anew since it lost its memory."""

import peewee
from peewee import BigIntegerField, BlobField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class Reconciliation(Table):
    """When a storage was last compared with the catalog as a whole, and in which epoch. `try_time`: last order by the clock.

    `hypervisor_id` is "" but for a local folder, which is another one on each hypervisor.
    """

    storage_id = TextField()
    hypervisor_id = TextField()
    epoch = number_field()  # 0 for never
    end_time = OptionalTimeField()
    try_time = OptionalTimeField()
    start_time = OptionalTimeField()  # when that reading began
    found_count = number_field()  # backups that it found
    unreadable_count = number_field()  # manifests that it could not read
    missing_count = number_field()  # backups of the storage that were gone then
    damaged_count = number_field()  # and such as could not be restored

    class Meta:
        primary_key = peewee.CompositeKey("storage_id", "hypervisor_id")


class Bundle(Table):
    """A recovery bundle that was sent to a storage (controller/bundles.py). `digest` is of what is in it, in clear.

    `state` is going, written or failed; one that failed before it had a storage or was sealed has "" for both.
    """

    bundle_id = id_field()
    storage_id = text_field()
    hypervisor_id = text_field()
    digest = text_field()
    state = TextField()
    create_time = TimeField()
    end_time = OptionalTimeField()
    part_count = number_field()
    stored_bytes = number_field()
    failure = JsonField(null=True)


class BundlePart(Table):
    """A sealed part on its way, and the job that writes it. It goes when its bundle has ended."""

    bundle_id = TextField()
    number = BigIntegerField()
    data = BlobField()
    job_id = TextField()

    class Meta:
        primary_key = peewee.CompositeKey("bundle_id", "number")
