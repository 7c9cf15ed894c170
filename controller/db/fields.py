"""Column types that mean the same on SQLite and on PostgreSQL."""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import peewee

if TYPE_CHECKING:
    _TimeBase = peewee.Field[datetime]
    _OptionalTimeBase = peewee.Field[datetime | None]
    _JsonBase = peewee.Field[Any]
else:  # peewee's fields are generic for the type checker only
    _TimeBase = _OptionalTimeBase = _JsonBase = peewee.Field

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)  # json.dumps would make one for each value


encode = _ENCODER.encode


class Encoded(str):
    """A JSON value as text already, for one that many rows have."""

    __slots__ = ()


def to_microseconds(time: datetime) -> int:
    """Return an instant as microseconds since 1970. Raises ValueError for a time without a zone."""
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone")
    return (time - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


class TimeField(_TimeBase):
    """An instant: aware UTC in Python, microseconds since 1970 in the database, so that both databases sort and return the same."""

    field_type = "BIGINT"

    def db_value(self, value: Any) -> int | None:
        return to_microseconds(value) if isinstance(value, datetime) else value

    def python_value(self, value: int | None) -> datetime | None:
        return None if value is None else from_microseconds(value)


class OptionalTimeField(_OptionalTimeBase):
    """An instant, or None."""

    field_type = "BIGINT"
    db_value = TimeField.db_value
    python_value = TimeField.python_value

    def __init__(self, **options: Any) -> None:
        super().__init__(null=True, **options)


class JsonField(_JsonBase):
    """A JSON value, kept as text: nothing here is searched inside the database. None is NULL."""

    field_type = "TEXT"

    def db_value(self, value: Any) -> str | None:
        return None if value is None else value if type(value) is Encoded else encode(value)

    def python_value(self, value: str | None) -> Any:
        return None if value is None else json.loads(value)
