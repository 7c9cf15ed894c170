"""What is to be pruned and purged."""

from peewee import TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class PruneRound(Table):
    """When a storage was evaluated last, as a whole. `cursor`: the server up to which a round has come that is under way."""

    storage_id = id_field()
    evaluate_time = OptionalTimeField()
    cursor = text_field()


class PruneCandidate(Table):
    """A server with backups on a storage that may have to go: found by a storage's evaluation, or just backed up.

    It is looked at from `look_time` on.
    """

    key = id_field()  # storage and server: a key of one column is what both databases take in an upsert
    storage_id = TextField()
    server_id = TextField()
    look_time = TimeField(index=True)


class Purge(Table):
    """All backups of a server are to go, on one storage or (`storage_id` "") on all.

    `bound_time`: only those made up to then were agreed to. `job_ids` are the jobs of the present try.
    """

    purge_id = id_field()
    server_id = TextField(index=True)
    storage_id = text_field()
    schedule_id = text_field()
    kind = TextField()  # deleted: only while the server is deleted; all: whether it is or not
    state = TextField(index=True)
    requester = text_field()
    request_id = TextField(default="", index=True)
    request_hash = text_field()
    create_time = TimeField()
    due_time = TimeField()
    bound_time = OptionalTimeField()
    retry_time = OptionalTimeField()
    end_time = OptionalTimeField()
    failure_count = number_field()
    failure = JsonField(null=True)
    job_ids = JsonField(default=list)
