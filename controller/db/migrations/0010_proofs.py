"""What proves that no backup lies unseen on a storage: when it was written to first, and what a reading of all of it found."""

from typing import Any

from peewee import BigIntegerField


def up(migrator: Any, db: Any) -> None:
    migrator.migrate(
        migrator.add_column("storage", "use_time", BigIntegerField(null=True)),
        migrator.add_column("reconciliation", "start_time", BigIntegerField(null=True)),
        migrator.add_column("reconciliation", "found_count", BigIntegerField(default=0)),
        migrator.add_column("reconciliation", "unreadable_count", BigIntegerField(default=0)),
    )
    # Nobody wrote down which storages were used: all of them may have been.
    db.execute_sql("UPDATE storage SET use_time = create_time")
