"""Several controllers on one database: whose session an agent's is."""

from typing import Any

import peewee
from peewee import TextField


class SessionOwner(peewee.Model):
    hypervisor_id = TextField(primary_key=True)
    session_id = TextField()
    owner = TextField()

    class Meta:
        legacy_table_names = False


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx((SessionOwner,)):
        db.create_tables((SessionOwner,))
