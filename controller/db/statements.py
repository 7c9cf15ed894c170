"""Statements written by hand, for what happens every second for every hypervisor or job.

Building a query in Python costs several times what the database needs for it: 5000 heartbeats took 7.8 s as model updates on a
busy machine with two cores, and take 1.0 s this way. All else is written with the models.
"""

from collections.abc import Iterable
from typing import Any

from controller.db.models import proxy


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
