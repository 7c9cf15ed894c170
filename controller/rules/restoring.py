"""What may be asked of a backup's and of a restore's single disks (C12): a type, a point, a target for each. Pure.

backup    type ── but for disk_types
restore   all disks of the backup ── but for points (another backup) ── into the server's disks, or to files and devices
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.errors import DiskNotFound, InvalidField

FORMAT_DEFAULT = "raw"


@dataclass(frozen=True, slots=True)
class RestoreChoice:
    """`points` has the disks that come from another backup, `targets` the paths that disks go to, by disk.

    `target_format` is raw or qcow2, "" for raw; `overwrite`: what is at a path may be written over.
    """

    points: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    target_format: str = ""
    overwrite: bool = False

    def json(self) -> dict[str, Any]:
        """Return it as a job's spec keeps it."""
        return {
            "points": dict(sorted(self.points.items())),
            "targets": dict(sorted(self.targets.items())),
            "target_format": self.target_format or FORMAT_DEFAULT,
            "overwrite": self.overwrite,
        }


NONE = RestoreChoice()


def check(choice: RestoreChoice, disks: Collection[str], target_folder: str) -> None:
    """Refuse what a restore of `disks` would refuse later. Raises InvalidField naming the field."""
    for name, given in (("points", choice.points), ("targets", choice.targets)):
        for disk in given:
            _expect(disk in disks, name, f"names {disk}, which is not among the disks to restore")
    to_files = bool(target_folder or choice.targets)
    _expect(to_files or not choice.target_format, "target_format", "is for files alone: give a folder or targets")
    _expect(
        to_files or not choice.overwrite,
        "overwrite",
        "is for files and block devices: the server's own disks always are",
    )
    if not to_files:
        return
    ending = choice.target_format or FORMAT_DEFAULT
    taken: set[str] = set()
    for disk in disks:
        _expect(
            disk in choice.targets or target_folder != "",
            "targets",
            f"has none for {disk}, and there is no folder for it",
        )
        path = choice.targets.get(disk) or f"{target_folder.rstrip('/')}/{disk}.{ending}"
        _expect(path not in taken, "targets", f"has {path} for two disks")
        taken.add(path)


def check_disk_types(
    server_name: str, disks: Collection[str], disk_types: Mapping[str, str], present: Collection[str]
) -> None:
    """Refuse types of disks that are not backed up; `present` is what the server has, empty if nobody knows.

    Raises InvalidField, DiskNotFound.
    """
    for disk in disk_types:
        _expect(not disks or disk in disks, "disk_types", f"names {disk}, which is not among the disks to back up")
        if present and disk not in present:
            raise DiskNotFound(domain=f"server {server_name}", disk=disk)


def _expect(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise InvalidField(field=name, problem=problem)
