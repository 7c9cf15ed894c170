"""What lies on each storage as one row, and what retention reads of a backup in one index."""

from typing import Any

import peewee
from peewee import BigIntegerField, TextField


class Table(peewee.Model):
    class Meta:
        legacy_table_names = False


class StorageTotal(Table):
    storage_id = TextField(primary_key=True)
    server_count = BigIntegerField()
    backup_count = BigIntegerField()
    stored_bytes = BigIntegerField()


_GONE = (
    "backup_total_storage_id_stored_bytes_backup_count_last_b_553c8c0",
    "backup_storage_id_server_id",
)
_INDEXES = (
    """CREATE INDEX "backup_total_storage_id_stored_bytes_server_id" ON "backup_total" ("storage_id", "stored_bytes", "server_id")""",
    """CREATE INDEX "backup_total_storage_id_last_backup_time" ON "backup_total" ("storage_id", "last_backup_time")""",
    (
        """CREATE INDEX "backup_history" ON "backup" ("storage_id", "server_id", "create_time", "backup_id", "state") """
        """WHERE ("delete_time" IS NULL)"""
    ),
)
_SUMS = """
    INSERT INTO storage_total (storage_id, server_count, backup_count, stored_bytes)
    SELECT storage_id, COUNT(*), SUM(backup_count), SUM(stored_bytes) FROM backup_total GROUP BY storage_id
"""


def up(_migrator: Any, db: Any) -> None:
    with db.bind_ctx((StorageTotal,)):
        db.create_tables((StorageTotal,))
    for name in _GONE:
        db.execute_sql(f'DROP INDEX "{name}"')
    for sql in _INDEXES:
        db.execute_sql(sql)
    db.execute_sql(_SUMS)
