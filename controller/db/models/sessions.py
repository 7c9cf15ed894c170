"""What goes to the agents and what came from them, each until it is settled."""

import peewee
from peewee import BigAutoField, BigIntegerField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, number_field, text_field


class OutboxCommand(Table):
    """A command until the agent has it. Holds no secret: its body is made from the job when it is sent."""

    sequence = BigAutoField()
    command_id = TextField(unique=True)
    hypervisor_id = TextField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    kind = TextField()  # "run" or "cancel"
    create_time = TimeField()
    send_time = OptionalTimeField()  # first time it may have left us
    settle_time = OptionalTimeField()  # the agent has it, or it is no longer wanted
    outcome = text_field()  # "received" or "withdrawn"


OutboxCommand.add_index(
    OutboxCommand.index(OutboxCommand.hypervisor_id, OutboxCommand.sequence, name="outbox_command_pending").where(
        OutboxCommand.settle_time.is_null()
    )
)


class SessionOwner(Table):
    """Which controller serves a hypervisor's session: `owner` has it as long as its turn lasts."""

    hypervisor_id = id_field()
    session_id = TextField()
    owner = TextField()


class AgentJournal(Table):
    """How far a journal's events are stored. A closed journal went back in time; nothing more is taken from it."""

    hypervisor_id = TextField()
    journal_id = TextField()
    stored_sequence = number_field()
    create_time = TimeField()
    update_time = TimeField()
    close_time = OptionalTimeField()

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id")


class AgentEvent(Table):
    """What an agent said, for the record; `outcome` is "applied", or why it changed nothing."""

    hypervisor_id = TextField()
    journal_id = TextField()
    sequence = BigIntegerField()
    job_id = TextField(index=True)
    attempt = BigIntegerField()
    generation = BigIntegerField()
    epoch = BigIntegerField()
    time = OptionalTimeField()
    store_time = TimeField()
    kind = TextField()
    outcome = TextField()
    body = JsonField(null=True)

    class Meta:
        primary_key = peewee.CompositeKey("hypervisor_id", "journal_id", "sequence")
