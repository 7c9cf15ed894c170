"""Statements written by hand, for what happens every second for every hypervisor or job, and for a thousand rows at once.

Building a query in Python costs several times what the database needs for it: 5000 heartbeats took 7.8 s as model updates on a
busy machine with two cores, and take 1.0 s this way. All else is written with the models.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import peewee

from controller.db.models import Table, proxy

_VALUES_MAX = 30_000  # of one statement; SQLite takes 32766, PostgreSQL 65535


def statement(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement with `?` for each value, inside the transaction of `Database.run`; return its rows if it has any.

    Values are what the database holds: times as microseconds, JSON as text. Source: `fields.py`.
    """
    cursor = proxy.execute_sql(sql.replace("?", proxy.param), values)
    return list(cursor.fetchall()) if cursor.description else []


def chunks(values: Iterable[str], size: int = 500) -> list[list[str]]:
    """Cut a list for databases that take so many parameters in a statement."""
    wanted = list(values)
    return [wanted[start : start + size] for start in range(0, len(wanted), size)]


def find_row(field: Any, value: str | int) -> Any | None:
    """Return the row whose `field` has this value, None if there is none; the field is unique.

    What `get_or_none` returns, for a tenth of its time: peewee writes the whole statement anew for each call.
    """
    found = statement(_select(field) + " = ? LIMIT 1", value)
    return _rows(field.model, found)[0] if found else None


def find_rows(field: Any, values: Iterable[str]) -> list[Any]:
    """Return the rows whose `field` has one of these values, in no order."""
    found: list[Any] = []
    for chunk in chunks(values):
        found += _rows(field.model, statement(f"{_select(field)} IN ({value_lines(len(chunk), '?')})", *chunk))
    return found


def _rows(model: Any, found: Iterable[tuple[Any, ...]]) -> list[Any]:
    columns = [(one.name, one.python_value) for one in model._meta.sorted_fields]  # noqa: SLF001 - where peewee keeps them
    return [
        model(__no_default__=1, **{name: read(value) for (name, read), value in zip(columns, row, strict=True)})
        for row in found
    ]


@functools.cache
def _select(field: Any) -> str:
    meta = field.model._meta  # noqa: SLF001 - as above
    names = ", ".join(f'"{one.column_name}"' for one in meta.sorted_fields)
    return f'SELECT {names} FROM "{meta.table_name}" WHERE "{field.column_name}"'  # noqa: S608 - our own names


def insert_rows(table: type[Table], rows: Sequence[Mapping[str, Any]], rest: str = "") -> list[tuple[Any, ...]]:
    """Insert rows by as few statements as the database takes; return the rows of `rest`, what follows VALUES, if it has any.

    `rows` have the names of the model's fields, each the same ones; a field that none of them has gets its default. Raises
    peewee.IntegrityError, and some rows may be in then: inside a transaction.
    """
    if not rows:
        return []
    meta: Any = table._meta  # noqa: SLF001 - as above
    columns = [one for one in meta.sorted_fields if not isinstance(one, peewee.AutoField)]
    names = ", ".join(f'"{one.column_name}"' for one in columns)
    given = [(one.name, one.db_value) for one in columns if one.name in rows[0]]
    line = ", ".join("?" if one.name in rows[0] else _default(one) for one in columns)
    found: list[tuple[Any, ...]] = []
    size = _VALUES_MAX // len(given)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        values = [convert(row[name]) for row in chunk for name, convert in given]
        lines = value_lines(len(chunk), f"({line})")
        sql = f'INSERT INTO "{meta.table_name}" ({names}) VALUES {lines} {rest}'  # noqa: S608 - names of our own columns
        found += statement(sql, *values)
    return found


def _default(column: Any) -> str:
    """Return what a column has that nobody gave a value, as SQL has it."""
    value = column.db_value(column.default() if callable(column.default) else column.default)
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).upper()
        case int() | float():
            return str(value)
    return "'{}'".format(str(value).replace("'", "''"))


def value_lines(count: int, line: str) -> str:
    """Return `line` so many times, as what follows VALUES; `?` in it stands for a value."""
    return ", ".join([line] * count)
