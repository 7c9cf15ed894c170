"""`bmctl package …`: what servers are sold as, and the access level that comes with it."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import ask, words
from clients.cli.access import Level, level_label, level_value
from clients.cli.failures import Usage
from clients.cli.options import Output, Yes, group
from clients.cli.output import Column, Screen, card, heading, plain
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.package_pb2 import Package

PackageArgument = Annotated[str, typer.Argument(metavar="PACKAGE", help="Id or name.")]
LevelOption = Annotated[
    Level | None, typer.Option("--level", help="Access level of its servers; inherit leaves it to their schedule.")
]

app = group()


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name; unique.")],
    level: LevelOption = None,
    output: Output = "table",
) -> None:
    """Make a package."""
    from clients.gen.backupmanager.v1.package_service_pb2 import CreatePackageRequest

    request = CreatePackageRequest(name=name, default_level=level_value(level or "inherit"))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.packages.CreatePackage, request)
        _show(Screen(output), reply.package)

    run(work)


@app.command("list")
def list_packages(output: Output = "table") -> None:
    """List packages by name."""
    from clients.gen.backupmanager.v1.package_service_pb2 import ListPackagesRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.packages.ListPackages, ListPackagesRequest(), "packages")
        screen.show_list(reply, "packages", _COLUMNS, empty="No packages yet. `bmctl package create NAME` makes one.")

    run(work)


@app.command()
def show(package: PackageArgument, output: Output = "table") -> None:
    """Show a package."""

    async def work(controller: Controller) -> None:
        _show(Screen(output), await find(controller, package))

    run(work)


@app.command()
def update(
    package: PackageArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    level: LevelOption = None,
    output: Output = "table",
) -> None:
    """Change a package.

    A new level counts at once for all of its servers that inherit.
    """
    from clients.gen.backupmanager.v1.package_service_pb2 import UpdatePackageRequest

    if name is None and level is None:
        raise Usage(field="package update", problem="nothing to change was given")

    async def work(controller: Controller) -> None:
        before = await find(controller, package)
        request = UpdatePackageRequest()
        request.package.package_id, request.package.etag = before.package_id, before.etag
        if name is not None:
            request.package.name = name
            request.update_mask.paths.append("name")
        if level is not None:
            request.package.default_level = level_value(level)
            request.update_mask.paths.append("default_level")
        reply = await controller.call(controller.packages.UpdatePackage, request)
        _show(Screen(output), reply.package)

    run(work)


@app.command()
def delete(package: PackageArgument, yes: Yes = False, output: Output = "table") -> None:
    """Delete a package that no server has."""
    from clients.gen.backupmanager.v1.package_service_pb2 import DeletePackageRequest

    async def work(controller: Controller) -> None:
        found = await find(controller, package)
        ask.confirm(f"Delete package {found.name} ({found.package_id})?", yes=yes)
        await controller.call(controller.packages.DeletePackage, DeletePackageRequest(package_id=found.package_id))
        Screen(output).show({"package_id": found.package_id}, lambda: f"Package {found.name} is gone.")

    run(work)


async def find(controller: Controller, package: str) -> "Package":
    """Return a package by id or name. Raises CallRefused."""
    from clients.gen.backupmanager.v1.package_service_pb2 import GetPackageRequest

    return (await controller.call(controller.packages.GetPackage, GetPackageRequest(package_id=package))).package


_COLUMNS = (
    Column("Name", lambda one: one.name),
    Column("Access level", lambda one: level_label(one, "default_level")),
    Column("Servers", lambda one: str(one.server_count), right=True),
    Column("Package", lambda one: one.package_id, whole=True, rank=2),
)


def _show(screen: Screen, package: "Package") -> None:
    screen.show({"package": plain(package)}, lambda: _card(screen, package))


def _card(screen: Screen, package: "Package") -> "RenderableType":
    facts = (
        ("Package", package.package_id),
        ("Access level", level_label(package, "default_level")),
        ("Servers", str(package.server_count)),
        ("Made", words.long_time(words.set_time(package, "create_time"), screen.now)),
    )
    return card(heading(package.name), facts)
