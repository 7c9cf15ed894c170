"""Several controllers on one database: whose session an agent's is. And large catalogs: a server's backups on a storage."""

from typing import Any

import peewee
from peewee import TextField


class SessionOwner(peewee.Model):
    hypervisor_id = TextField(primary_key=True)
    session_id = TextField()
    owner = TextField()

    class Meta:
        legacy_table_names = False


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx((SessionOwner,)):
        db.create_tables((SessionOwner,))
    # Without it all backups of a storage are read for each slice of its servers: the time grows with the square of their number.
    migrator.migrate(migrator.add_index("backup", ("storage_id", "server_id")))
