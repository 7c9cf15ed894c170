"""`bmctl settings …`: the settings of the whole installation."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import words
from clients.cli.failures import Usage
from clients.cli.options import Output, group
from clients.cli.output import Screen, card, heading, plain
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.settings_pb2 import Settings

app = group()

_SWITCHES = {"on": True, "off": False, "true": True, "false": False}
_NOT_OURS = {"update_time", "etag"}


@app.command()
def show(output: Output = "table") -> None:
    """Show all settings."""

    async def work(controller: Controller) -> None:
        _show(Screen(output), await _get(controller))

    run(work)


@app.command("set")
def set_settings(
    settings: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE…", help="As `settings show` names them; on and off for switches.")
    ],
    output: Output = "table",
) -> None:
    """Change settings.

    They hold from the next tick on; what runs is not touched. `max-concurrent-batches=` takes the limit away.
    """
    from clients.gen.backupmanager.v1.settings_service_pb2 import UpdateSettingsRequest

    request = UpdateSettingsRequest()
    for one in settings:
        name, equals, text = one.partition("=")
        if not equals:
            raise Usage(field=one, problem="must be NAME=VALUE, such as backup-cooldown-minutes=30")
        request.update_mask.paths.append(_write(request.settings, name.replace("-", "_"), text))

    async def work(controller: Controller) -> None:
        request.settings.etag = (await _get(controller)).etag
        reply = await controller.call(controller.settings.UpdateSettings, request)
        _show(Screen(output), reply.settings)

    run(work)


def _write(settings: "Settings", name: str, text: str) -> str:
    """Write a setting, and return its name. Raises Usage."""
    fields = settings.DESCRIPTOR.fields_by_name
    if name not in fields or name in _NOT_OURS:
        raise Usage(field=name.replace("_", "-"), problem="is no setting; `bmctl settings show` names them all")
    field = fields[name]
    try:
        if not text and field.has_presence:
            settings.ClearField(name)  # type: ignore[arg-type]  # one of its fields, checked above
        elif field.type == field.TYPE_BOOL:
            setattr(settings, name, _SWITCHES[text.lower()])
        elif field.type == field.TYPE_STRING:
            setattr(settings, name, text)
        else:
            setattr(settings, name, float(text) if field.type == field.TYPE_DOUBLE else int(text))
    except (KeyError, ValueError):
        kind = "on or off" if field.type == field.TYPE_BOOL else "a number"
        raise Usage(field=name.replace("_", "-"), problem=f"must be {kind}") from None
    return name


async def _get(controller: Controller) -> "Settings":
    from clients.gen.backupmanager.v1.settings_service_pb2 import GetSettingsRequest

    return (await controller.call(controller.settings.GetSettings, GetSettingsRequest())).settings


def _show(screen: Screen, settings: "Settings") -> None:
    screen.show({"settings": plain(settings)}, lambda: _card(screen, settings))


def _card(screen: Screen, settings: "Settings") -> "RenderableType":
    names = [field.name for field in settings.DESCRIPTOR.fields if field.name not in _NOT_OURS]
    facts = [(name.replace("_", "-"), _value(settings, name)) for name in names]
    changed = words.long_time(words.set_time(settings, "update_time"), screen.now)
    return card(heading("Settings", f"changed {changed}" if changed != "-" else "as they come"), facts)


def _value(settings: Any, name: str) -> str:
    value = getattr(settings, name)
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "max_concurrent_batches" and not settings.HasField(name):
        return "no limit"
    return f"{value:g}" if isinstance(value, float) else str(value)
