"""`bmctl preset …`: performance settings that go together."""

from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import overrides
from clients.cli.options import Output, group
from clients.cli.output import Column, Screen, card, heading
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.preset_pb2 import Preset
    from clients.gen.backupmanager.v1.preset_service_pb2 import ApplyPresetResponse

app = group()


@app.command("list")
def list_presets(output: Output = "table") -> None:
    """List the presets."""
    from clients.gen.backupmanager.v1.preset_service_pb2 import ListPresetsRequest

    async def work(controller: Controller) -> None:
        reply, _ = await controller.every(controller.presets.ListPresets, ListPresetsRequest(), "presets")
        Screen(output).show_list(reply, "presets", _COLUMNS, empty="There are none.")

    run(work)


@app.command("apply")
def apply_preset(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Its name; see `preset list`.")],
    storage: Annotated[str, typer.Option("--storage", help="To this storage: id or name.")],
    schedule: Annotated[
        str, typer.Option("--schedule", help="And to the schedule of this hypervisor, or with this id.")
    ] = "",
    output: Output = "table",
) -> None:
    """Apply a preset.

    It sets all that it lists and clears the limits that it does not list; the rest is left alone, and named.
    """
    from clients.gen.backupmanager.v1.preset_service_pb2 import ApplyPresetRequest

    request = ApplyPresetRequest(preset=preset, storage_id=storage, schedule_id=schedule)

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.presets.ApplyPreset, request)
        Screen(output).show(reply, lambda: _card(reply))

    run(work)


def _listed(preset: "Preset") -> list[str]:
    found = [
        f"{overrides.title(field.name)} {overrides.shown(field.name, preset.settings)}"
        for field, _ in preset.settings.ListFields()
    ]
    return [
        *found,
        f"compression level {preset.compression_level}",
        f"compression threads {preset.compression_threads}",
    ]


_COLUMNS = (
    Column("Name", lambda one: one.name),
    Column("For", lambda one: one.description),
    Column("Sets", lambda one: ", ".join(_listed(one)), rank=1),
)


def _card(reply: "ApplyPresetResponse") -> "RenderableType":
    preset = reply.preset
    facts = (
        ("Storage", reply.storage.name),
        ("Schedule", reply.schedule.schedule_id),
        ("Set", "\n".join(_listed(preset))),
        ("Cleared", ", ".join(overrides.title(name) for name in preset.cleared)),
        ("Left alone", ", ".join(overrides.title(name) for name in preset.left_alone)),
    )
    return card(heading(preset.name, "applied"), facts)
