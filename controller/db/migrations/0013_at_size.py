"""Indexes for what the clock asks every minute: servers that their hypervisor has lost, and who made the backups on a storage."""

from typing import Any

_INDEXES = (
    """CREATE INDEX "server_lost" ON "server" ("server_id") WHERE (("place_state" = 'gone') AND ("delete_time" IS NULL))""",
    """CREATE INDEX "backup_maker" ON "backup" ("storage_id", "hypervisor_id") WHERE ("delete_time" IS NULL)""",
)


def up(_migrator: Any, db: Any) -> None:
    for sql in _INDEXES:
        db.execute_sql(sql)
