"""Until when a webhook's receiver asked to be left alone."""

from typing import Any

from peewee import BigIntegerField


def up(migrator: Any, _db: Any) -> None:
    migrator.migrate(migrator.add_column("webhook", "hold_time", BigIntegerField(null=True)))
