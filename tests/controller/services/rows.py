"""Whether a call has left a trace in a controller's database: asked of its SQLite file, from outside, while it serves.

    rows = Rows(controller.state)
    before = rows.digests()
    ...a call...
    rows.changed(before)        ["schedule"]: the tables of which a row is another one now

SQLite tells cheaply that nobody has written at all; only otherwise are the rows read. What signs of life and the record of calls
change is left out: a refused call is in the audit, and its token has been used.
"""

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

_OWN_LIFE = {"audit", "turn", "session_owner"}
_OWN_COLUMNS = {"installation": {"mark"}, "access_token": {"last_use_time"}}

Digests = dict[str, int]


class Rows:
    """A connection of its own to the database of a controller that keeps it in `state`, as a `with` block. Reads only."""

    def __init__(self, state: Path) -> None:
        self._connection = sqlite3.connect(f"file:{state}/controller.db?mode=ro", uri=True, isolation_level=None)
        names = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        )
        self._queries = {name: self._query(name) for (name,) in names if name not in _OWN_LIFE}
        self._version = -1
        self._digests: Digests = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def digests(self) -> Digests:
        """Return a number for each table that another row makes another one."""
        ((version,),) = self._connection.execute("PRAGMA data_version").fetchall()
        if version != self._version:  # a commit of somebody else since the last look
            self._version = version
            self._connection.execute("BEGIN")
            self._digests = {
                name: hash(tuple(self._connection.execute(query).fetchall())) for name, query in self._queries.items()
            }
            self._connection.execute("COMMIT")
        return self._digests

    def changed(self, before: Digests) -> list[str]:
        """Return the tables that are not as they were."""
        now = self.digests()
        return sorted(name for name in now if now[name] != before[name])

    def _query(self, table: str) -> str:
        columns = [row[1] for row in self._connection.execute(f'PRAGMA table_info("{table}")')]
        kept = ", ".join(f'"{one}"' for one in columns if one not in _OWN_COLUMNS.get(table, ()))
        return f'SELECT {kept} FROM "{table}"'  # names of ours
