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
from controller.db.statements import statement

TURN = timedelta(seconds=30)
_MICROSECOND = timedelta(microseconds=1)
_SQLITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
_POSTGRES_NOW = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
_LASTS = "SELECT 1 FROM turn WHERE name = ? AND holder = ? AND expire_time >= {now}"


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


def keep(name: str, holder: str, span: timedelta = TURN) -> bool:
    """Keep a turn that lasts. False when it ran out or is another's."""
    until = _now() + span // _MICROSECOND
    held = (Turn.name == name) & (Turn.holder == holder) & (Turn.expire_time >= _now())
    return bool(Turn.update(expire_time=until).where(held).execute())


def lasts(name: str, holder: str) -> bool:
    """Tell whether a turn is the holder's now."""
    return bool(statement(_LASTS.format(now=_now().sql), name, holder))


def clear(*, all_turns: bool) -> None:
    """Forget turns that ran out an hour ago; or all of them, where nobody else can be using the database."""
    old = Turn.expire_time < _now() - timedelta(hours=1) // _MICROSECOND
    Turn.delete().where((Turn.name != "") if all_turns else old).execute()


def give_back(name: str, holder: str) -> None:
    """Let another have it at once. Not having it is no error."""
    Turn.delete().where((Turn.name == name) & (Turn.holder == holder)).execute()


def _now() -> Any:
    sqlite = isinstance(proxy.obj, peewee.SqliteDatabase)
    return SQL(_SQLITE_NOW if sqlite else _POSTGRES_NOW)
