"""What the controller knows anew since it lost its memory."""

import peewee
from peewee import TextField

from controller.db.fields import OptionalTimeField
from controller.db.models.base import Table, number_field


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

    class Meta:
        primary_key = peewee.CompositeKey("storage_id", "hypervisor_id")
