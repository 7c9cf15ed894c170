"""Who needs whose data: the one place that says what a deletion would break. Pure.

A manifest names every data file it needs, its own and other backups'. A file that a surviving manifest needs stays; that
nothing needs it is never a reason to delete it, only the absence of a veto. Nothing is derived from dates or from parents.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from engine.format.manifest import DiskManifest


class Point(NamedTuple):
    """One disk in one backup."""

    backup_id: str
    disk: str


class DataFile(NamedTuple):
    """One segment of one disk in one backup, of the server at hand."""

    backup_id: str
    disk: str
    segment: int


def needs(manifest: DiskManifest) -> frozenset[DataFile]:
    """Return every data file that restoring this disk reads."""
    return frozenset(
        DataFile(layer.backup_id, manifest.disk, segment.number)
        for layer in manifest.layers
        for segment in layer.segments
    )


def in_order(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Return the backups of `needs` (by id, what each builds upon) so that none comes before one that it needs.

    Apart from that they keep their order. Times cannot promise it: a clock that jumped made a child older than its parent.
    """
    ordered: dict[str, None] = {}
    visited: set[str] = set()

    def visit(backup_id: str) -> None:
        if backup_id in visited or backup_id not in needs:
            return
        visited.add(backup_id)
        for needed in needs[backup_id]:
            visit(needed)
        ordered[backup_id] = None

    for backup_id in needs:
        visit(backup_id)
    return list(ordered)


def needed_points(manifest: DiskManifest) -> frozenset[Point]:
    """Return the disks of backups that hold those files, its own included."""
    return frozenset(Point(layer.backup_id, manifest.disk) for layer in manifest.layers)


def needed_by(manifests: Iterable[DiskManifest], deleting: Collection[Point]) -> dict[Point, frozenset[Point]]:
    """Return which of `deleting` may not go, each with the surviving disks that need its data.

    `manifests` are all manifests of one server, readable ones; if one is not readable, nothing may be deleted and this
    must not be asked. Points that need only each other may go together; a point that may not go survives, and what it
    needs may not go either.
    """
    users = {Point(manifest.backup_id, manifest.disk): needed_points(manifest) for manifest in manifests}
    going = set(deleting)
    vetoes: dict[Point, set[Point]] = {}
    fresh = [point for point in users if point not in going]
    while fresh:
        survivor = fresh.pop()
        for needed in users.get(survivor, frozenset()):
            if needed in going:
                going.discard(needed)
                fresh.append(needed)
                vetoes[needed] = set()
            if needed in vetoes and needed != survivor:
                vetoes[needed].add(survivor)
    return {point: frozenset(by) for point, by in vetoes.items()}
