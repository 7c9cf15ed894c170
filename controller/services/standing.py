"""Storages as they are shown: with what lies there and how they are, by two queries for all of them."""

from collections.abc import Sequence
from typing import TypeAlias

from controller import health, reconciliation, totals
from controller.storages import Storage

Standing: TypeAlias = tuple[Storage, totals.Total, health.Health, bool]


def of_storages(records: Sequence[Storage]) -> list[Standing]:
    """Return what `convert_storages.storage` takes for each of these. Inside `Database.run`."""
    ids = [one.storage_id for one in records]
    lying, found = totals.of_storages(ids), health.of_storages(ids)
    return [
        (
            one,
            lying.get(one.storage_id, totals.NONE),
            found.get(one.storage_id, health.NEVER),
            bool(reconciliation.blocked_at(one)),
        )
        for one in records
    ]
