"""Retention once more, as slowly and plainly as the rules read: for each backup, is there a reason? For tests alone."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from engine.retention import Backup, DiskPoint, Rules


def naive_kept(backups: Sequence[Backup], rules: Rules, now: datetime) -> set[str]:
    """Return the ids of the backups that stay."""
    if rules.policy is None:
        return {one.backup_id for one in backups}
    world = _World(backups, rules, now)
    stay = {one.backup_id for one in backups if world.own_reason(one)}
    while True:
        more = {
            need
            for one in backups
            if one.backup_id in stay
            for point in one.disks
            for need in point.needs
            if need not in stay and any(other.backup_id == need for other in backups)
        }
        if not more:
            return stay
        stay |= more


class _World:
    def __init__(self, backups: Sequence[Backup], rules: Rules, now: datetime) -> None:
        self.backups, self.rules, self.now = backups, rules, now
        self.by_id = {one.backup_id: one for one in backups}
        self.sound = [one for one in backups if self.is_sound(one)]

    def is_sound(self, one: Backup) -> bool:
        if one.damaged:
            return False
        needs = {need for point in one.disks for need in point.needs}
        return all(need in self.by_id and self.is_sound(self.by_id[need]) for need in needs)

    def own_reason(self, one: Backup) -> bool:
        if one not in self.sound:
            return True
        if not any(other.order > one.order for other in self.sound):
            return True
        return any(self.disk_reason(one, point) for point in one.disks)

    def disk_reason(self, one: Backup, point: DiskPoint) -> bool:
        if not self.rules.chained:
            return self.rank_of_point(one, point.disk) < self.rules.keep_last or self.selected(one, point.disk)
        if not point.copy and self.newer_chains(point) <= self.rules.keep_last:
            return True  # 0 newer ones: it is the active chain
        members = self.chain(point)
        winners = [other for other in members if other in self.sound and self.selected(other, point.disk)]
        if not winners:
            return False
        if not self.rules.trim_tails or any(other.tracked for other in members):
            return True
        return any(other.order >= one.order for other in winners)

    def chain(self, point: DiskPoint) -> list[Backup]:
        return [
            other
            for other in self.backups
            if any(p.disk == point.disk and p.chain_id == point.chain_id for p in other.disks)
        ]

    def newer_chains(self, point: DiskPoint) -> int:
        """How many chains of the disk have a sound point that is newer than all sound points of this one; many if it has none."""
        newest: dict[str, Backup] = {}
        for other in sorted(self.sound, key=lambda b: b.order):
            for p in other.disks:
                if p.disk == point.disk and not p.copy:
                    newest[p.chain_id] = other
        if point.chain_id not in newest:
            return 10**9
        own = newest[point.chain_id]
        return sum(other.order > own.order for other in newest.values())

    def rank_of_point(self, one: Backup, disk: str) -> int:
        return sum(other.order > one.order for other in self.sound if any(p.disk == disk for p in other.disks))

    def selected(self, one: Backup, disk: str) -> bool:
        policy = self.rules.policy
        assert policy is not None
        if policy.days > 0 and self.now - one.create_time < timedelta(days=policy.days):
            return True
        return (
            self.wins(one, disk, "%Y-%m-%d", policy.daily)
            or self.wins(one, disk, "%G-%V", policy.weekly)
            or self.wins(one, disk, "%Y-%m", policy.monthly)
            or self.wins(one, disk, "%Y", policy.yearly)
        )

    def wins(self, one: Backup, disk: str, bucket: str, count: int) -> bool:
        def label(other: Backup) -> str:
            return other.create_time.astimezone(self.rules.zone).strftime(bucket)

        newer = [other for other in self.sound if other.order > one.order and any(p.disk == disk for p in other.disks)]
        labels = {label(other) for other in newer}
        return label(one) not in labels and len(labels) < count
