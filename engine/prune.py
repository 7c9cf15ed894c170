"""A server's history as retention.py wants it, and what pruning it by given rules would do (C5).

Nothing is deleted here: the plan's ids go to delete.py, which reads every manifest again and has the last word (R19).
"""

from dataclasses import dataclass
from datetime import datetime

from engine import plan, retention
from engine.catalog import History, Point
from engine.format import names
from engine.retention import Backup, DiskPoint, Rhythm, Rules, Verdict


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """`verdicts` has every backup, oldest first; `delete` those that may go, newest first; `unreadable` what stays unread."""

    verdicts: list[Verdict]
    delete: list[str]
    unreadable: list[str]


def plan_prune(history: History, rules: Rules, now: datetime, rhythm: Rhythm, key_id: str = "") -> PrunePlan:
    """Return what would go and why the others stay. `key_id` is the repository's present key, "" for none.

    A backup whose deletion was interrupted goes in any case: it was decided before.
    """
    going = _half_deleted(history)
    points = [point for point in history.points if point.server.backup_id not in going]
    backups = [_backup(point, history) for point in points]
    verdicts = retention.explain(backups, rules, now, rhythm, _extends(points, key_id, now))
    unneeded = [one.backup_id for one in reversed(verdicts) if not one.kept]
    return PrunePlan(verdicts, [*unneeded, *sorted(going, reverse=True)], sorted(history.unreadable))


def _backup(point: Point, history: History) -> Backup:
    """Return a point without its data. One that lost a file, or whose manifests cannot all be read, is damaged (R20)."""
    damaged = bool(point.unreadable) or len(point.disks) < len(point.server.disks)
    damaged = damaged or not all(history.whole(manifest) for manifest in point.disks.values())
    disks = []
    for summary in point.server.disks:
        manifest = point.disks.get(summary.disk)
        needs = {layer.backup_id for layer in manifest.layers} if manifest is not None else {summary.parent_backup_id}
        needs -= {point.server.backup_id, ""}
        disks.append(DiskPoint(summary.disk, summary.chain_id, frozenset(needs), copy=summary.type == "copy"))
    create_time = datetime.fromisoformat(point.server.create_time)
    return Backup(point.server.backup_id, create_time, tuple(disks), damaged=damaged)


def _extends(points: list[Point], key_id: str, now: datetime) -> dict[str, str]:
    """Return the chain that each disk's next incremental would go on with, by the same rule that the backup uses."""
    wish = plan.Wish("incremental", 0, key_id, now)
    found = {}
    for disk in {disk for point in points for disk in point.disks}:
        parent = plan.base(wish, [point.disks[disk] for point in points if disk in point.disks])
        if parent is not None:
            found[disk] = parent.chain_id
    return found


def _half_deleted(history: History) -> set[str]:
    """Return the backups whose deletion was begun, with backup.json or without."""
    marks = (names.parse(name) for name in history.sizes)
    marked = {one.backup_id for one in marks if one is not None and one.kind == "deleted"}
    return {point.server.backup_id for point in history.points if point.marked} | (marked & set(history.attempts))
