"""Packages, access levels, commissioning, locks, owners, and who else claims a server.

A frozen copy of what is added; see 0001. Servers that live at this moment were backed up as they were, so they count as commissioned.
"""

from typing import Any

import peewee
from peewee import BigIntegerField, BooleanField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class Package(Table):
    package_id = TextField(primary_key=True)
    name = TextField(unique=True)
    default_level = TextField()
    create_time = BigIntegerField()
    update_time = BigIntegerField()
    version = BigIntegerField()


class ServerClaim(Table):
    server_id = TextField()
    hypervisor_id = TextField(index=True)
    refused = BooleanField()
    create_time = BigIntegerField()

    class Meta:
        primary_key = peewee.CompositeKey("server_id", "hypervisor_id")


def up(migrator: Any, db: Any) -> None:
    with db.bind_ctx((Package, ServerClaim)):
        db.create_tables((Package, ServerClaim))
    columns = {
        "package_id": TextField(default=""),
        "access_override": TextField(default=""),
        "commissioned": BooleanField(default=True),
        "owner": TextField(default=""),
        "owner_time": BigIntegerField(null=True),
        "history_time": BigIntegerField(null=True),
        "lock_reason": TextField(default=""),
        "lock_time": BigIntegerField(null=True),
        "lock_expire_time": BigIntegerField(null=True),
        "place_state": TextField(default=""),
    }
    migrator.migrate(*(migrator.add_column("server", name, field) for name, field in columns.items()))
    migrator.migrate(migrator.add_index("server", ("package_id",), name="server_package_id"))
    db.execute_sql(
        """CREATE INDEX "access_token_portal_expire" ON "access_token" ("expire_time") WHERE ("scope" = 'portal')"""
    )
