"""Statements written by hand, for what happens every second for every hypervisor or job, and for a thousand rows at once.

Building a query in Python costs several times what the database needs for it: 5000 heartbeats took 7.8 s as model updates on a
busy machine with two cores, and take 1.0 s this way. All else is written with the models.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def change_rows(table: type[Table], values: Mapping[str, Any], condition: str, *keys: Any) -> list[tuple[Any, ...]]:
    """Give new values to the rows for which `condition`, SQL with `?` for each key, holds; each gets its next version.

    `values` have the names of the model's fields. Return the rows of what `condition` ends with, if that is RETURNING.
    """
    begin, converts = _update(table, tuple(values))
    given = [convert(value) for convert, value in zip(converts, values.values(), strict=True)]
    return statement(f"{begin} WHERE {condition}", *given, *keys)


@functools.lru_cache(200)
def _update(table: Any, names: tuple[str, ...]) -> tuple[str, tuple[Callable[[Any], Any], ...]]:
    """Return how a change of these fields begins, and how each value is converted."""
    meta = table._meta  # noqa: SLF001 - as below
    fields = [meta.fields[name] for name in names]
    changes = ", ".join(["version = version + 1", *(f'"{one.column_name}" = ?' for one in fields)])
    return f'UPDATE "{meta.table_name}" SET {changes}', tuple(one.db_value for one in fields)  # noqa: S608 - our own names


def find_rows(field: Any, values: Iterable[str]) -> list[Any]:
    """Return the rows whose `field` has one of these values, in no order."""
    found: list[Any] = []
    for chunk in chunks(values):
        found += _rows(field.model, statement(f"{_select(field)} IN ({value_lines(len(chunk), '?')})", *chunk))
    return found


def fetch(query: Any) -> list[Any]:
    """Return the rows of a peewee query that selects all columns of one table: a third of the time of iterating over it."""
    sql, values = query.sql()
    return _rows(query.model, proxy.execute_sql(sql, values).fetchall())


def find_where(model: type[Table], condition: str, *values: Any) -> list[Any]:
    """Return the rows of a table for which `condition`, SQL with `?` for each value, holds; it may go on with ORDER BY."""
    return _rows(model, statement(f"{_all_of(model)} WHERE {condition}", *values))


def _rows(model: Any, found: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return rows as peewee would, but for its setting of attributes one by one, which is most of its time."""
    names, reads = _columns(model)
    rows = []
    for values in found:
        given = dict(zip(names, values, strict=True))
        for name, read in reads:
            given[name] = read(given[name])
        row = model(__no_default__=1)
        row.__data__ = given
        rows.append(row)
    return rows


@functools.cache
def _columns(model: Any) -> tuple[tuple[str, ...], tuple[tuple[str, Callable[[Any], Any]], ...]]:
    """Return the names of a table's fields, and how those are read that the database does not hold as Python does."""
    fields = model._meta.sorted_fields  # noqa: SLF001 - where peewee keeps them
    converted = ((one.name, one.python_value) for one in fields if not _plain(one))
    return tuple(one.name for one in fields), tuple(converted)


def _plain(field: Any) -> bool:
    """Tell whether a field's values are the same in Python and in both databases: texts and whole numbers."""
    return type(field) in {peewee.TextField, peewee.BigIntegerField, peewee.BigAutoField}


@functools.cache
def _select(field: Any) -> str:
    return f'{_all_of(field.model)} WHERE "{field.column_name}"'


@functools.cache
def _all_of(model: Any) -> str:
    meta = model._meta  # noqa: SLF001 - as above
    names = ", ".join(f'"{one.column_name}"' for one in meta.sorted_fields)
    return f'SELECT {names} FROM "{meta.table_name}"'  # noqa: S608 - our own names


def insert_rows(table: type[Table], rows: Sequence[Mapping[str, Any]], rest: str = "") -> list[tuple[Any, ...]]:
    """Insert rows by as few statements as the database takes; return the rows of `rest`, what follows VALUES, if it has any.

    `rows` have the names of the model's fields, each the same ones; a field that none of them has gets its default. Raises
    peewee.IntegrityError, and some rows may be in then: inside a transaction.
    """
    if not rows:
        return []
    insert, line, given = _insert(table, frozenset(rows[0]))
    found: list[tuple[Any, ...]] = []
    size = _VALUES_MAX // len(given)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        values = [row[name] if convert is None else convert(row[name]) for row in chunk for name, convert in given]
        found += statement(f"{insert} {value_lines(len(chunk), line)} {rest}", *values)
    return found


@functools.lru_cache(200)
def _insert(table: Any, names: frozenset[str]) -> tuple[str, str, tuple[tuple[str, Callable[[Any], Any] | None], ...]]:
    """Return how an insertion of rows with these fields begins, one line of it, and how each value is converted, if at all."""
    meta = table._meta  # noqa: SLF001 - as above
    columns = [one for one in meta.sorted_fields if not isinstance(one, peewee.AutoField)]
    known = ", ".join(f'"{one.column_name}"' for one in columns)
    given = tuple((one.name, None if _plain(one) else one.db_value) for one in columns if one.name in names)
    line = ", ".join("?" if one.name in names else _default(one) for one in columns)
    return f'INSERT INTO "{meta.table_name}" ({known}) VALUES', f"({line})", given


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


def put_row(table: type[Table], key: Mapping[str, Any], first: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Give `values` to the row with this primary or unique key; one that is made for it gets those of `first` as well."""
    row = {**key, **first, **values}
    insert_rows(table, [row], _on_conflict(table, tuple(key), tuple(values)))


@functools.lru_cache(200)
def _on_conflict(table: Any, key: tuple[str, ...], names: tuple[str, ...]) -> str:
    columns = {name: field.column_name for name, field in table._meta.fields.items()}  # noqa: SLF001 - as above
    changes = ", ".join(f'"{columns[one]}" = excluded."{columns[one]}"' for one in names)
    return f"ON CONFLICT ({', '.join(columns[one] for one in key)}) DO UPDATE SET {changes}"


def value_lines(count: int, line: str) -> str:
    """Return `line` so many times, as what follows VALUES; `?` in it stands for a value."""
    return ", ".join([line] * count)
