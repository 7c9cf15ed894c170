"""Packages: what servers are sold as, with the access level of those that have none of their own (A5).

Sync functions, run by `Database.run`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import peewee

from controller import happenings
from controller.db import models
from controller.db.statements import find_row
from controller.errors import EtagMismatch, PackageExists, PackageInUse, PackageNotFound
from engine.ids import new_id

Row = models.Package


@dataclass(frozen=True, slots=True)
class Package:
    """A package as it stands. `default_level` is "" where it passes on to the schedule."""

    package_id: str
    name: str
    default_level: str
    server_count: int
    create_time: datetime
    update_time: datetime
    etag: str


def find(reference: str) -> Package:
    """Return the package with this id or name. Raises PackageNotFound."""
    row = find_row(Row.package_id, reference) or find_row(Row.name, reference)
    if row is None:
        raise PackageNotFound(package_id=reference)
    return _package(row)


def list_packages(*, after: tuple[str] | None = None, limit: int = 101) -> list[Package]:
    """Return packages by name, those after the name in `after`."""
    query = Row.select() if after is None else Row.select().where(Row.name > after[0])
    return [_package(row) for row in query.order_by(Row.name).limit(limit)]


def create(name: str, default_level: str, now: datetime) -> Package:
    """Make a package. Raises PackageExists."""
    package_id = new_id(now)
    try:
        with models.proxy.atomic():
            Row.insert(
                package_id=package_id, name=name, default_level=default_level, create_time=now, update_time=now
            ).execute()
    except peewee.IntegrityError:
        raise PackageExists(name=name) from None
    happenings.record("package.created", now, body={"package_id": package_id, "name": name})
    return find(package_id)


def update(reference: str, changes: Mapping[str, str], etag: str, now: datetime) -> Package:
    """Change name or default_level. Raises PackageNotFound, EtagMismatch, PackageExists."""
    package = find(reference)
    if etag and etag != package.etag:
        raise EtagMismatch(etag=package.etag)
    try:
        with models.proxy.atomic():
            Row.update(**changes, version=Row.version + 1, update_time=now).where(
                Row.package_id == package.package_id
            ).execute()
    except peewee.IntegrityError:
        raise PackageExists(name=changes.get("name", "")) from None
    happenings.record("package.updated", now, body={"package_id": package.package_id, **changes})
    return find(package.package_id)


def delete(reference: str, now: datetime) -> None:
    """Delete a package that no living server has. Raises PackageNotFound, PackageInUse."""
    package = find(reference)
    if package.server_count:
        raise PackageInUse(package_id=package.package_id, server_count=package.server_count)
    Row.delete().where(Row.package_id == package.package_id).execute()
    happenings.record("package.deleted", now, body={"package_id": package.package_id, "name": package.name})


def _package(row: models.Package) -> Package:
    server = models.Server
    return Package(
        package_id=row.package_id,
        name=row.name,
        default_level=row.default_level,
        server_count=server.select()
        .where((server.package_id == row.package_id) & server.delete_time.is_null())
        .count(),
        create_time=row.create_time,
        update_time=row.update_time,
        etag=str(row.version),
    )
