"""Whose turn it is: of several controllers on one database, one does what the clock demands.

    take ──► nobody's, expired, or ours already ──► ours for 30 s more        another's ──► False

One conditional statement, on the database's own clock, since those of controllers differ. Losing a turn in the middle of a
round is harmless: every step claims what it works on row by row, and two that work at once only do it twice as often.
"""

from datetime import timedelta
from typing import Any

import peewee
from peewee import SQL

from controller.db.models import Turn, proxy

TURN = timedelta(seconds=30)
_MICROSECOND = timedelta(microseconds=1)
_SQLITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
_POSTGRES_NOW = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


def take(name: str, holder: str, span: timedelta = TURN) -> bool:
    """Take or keep a turn. Inside `Database.run`."""
    until = _now() + span // _MICROSECOND
    rows = (
        Turn.insert(name=name, holder=holder, expire_time=until)
        .on_conflict(
            conflict_target=[Turn.name],
            update={Turn.holder: holder, Turn.expire_time: until},
            where=(Turn.holder == holder) | (Turn.expire_time < _now()),
        )
        .returning(Turn.holder)
        .execute()
    )
    return bool(list(rows))


def give_back(name: str, holder: str) -> None:
    """Let another have it at once. Not having it is no error."""
    Turn.delete().where((Turn.name == name) & (Turn.holder == holder)).execute()


def _now() -> Any:
    sqlite = isinstance(proxy.obj, peewee.SqliteDatabase)
    return SQL(_SQLITE_NOW if sqlite else _POSTGRES_NOW)
