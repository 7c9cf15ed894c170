"""What storages and catalog do not agree on: indexes of such backups, and what the last reading told of them. Since when an epoch lasts."""

from typing import Any

from peewee import BigIntegerField

_FLAWED = (
    """CREATE INDEX "backup_flawed" ON "backup" ("state", "storage_id", "server_id") """
    """WHERE (("state" != 'available') AND ("delete_time" IS NULL))"""
)
_ADOPTED = """CREATE INDEX "backup_adopted" ON "backup" ("adopt_job_id") WHERE (("adopt_job_id" != '') AND ("delete_time" IS NULL))"""


def up(migrator: Any, db: Any) -> None:
    migrator.migrate(
        migrator.add_column("installation", "epoch_time", BigIntegerField(null=True)),
        migrator.add_column("reconciliation", "missing_count", BigIntegerField(default=0)),
        migrator.add_column("reconciliation", "damaged_count", BigIntegerField(default=0)),
    )
    for sql in (_FLAWED, _ADOPTED):
        db.execute_sql(sql)
