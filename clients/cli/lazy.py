"""Groups of verbs whose module is imported when somebody enters them.

Building the 35 verbs of bmctl takes longer than all the rest of `bmctl --help`, which needs only six names and sentences.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


def lazy_group(module: str, help_text: str) -> typer.Typer:
    """Return a group with the verbs of the typer app named `app` in `module`."""

    class Lazy(TyperGroup):
        _loaded: Any = None

        def list_commands(self, ctx: Any) -> list[str]:
            return list(self._load().list_commands(ctx))

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return self._load().get_command(ctx, cmd_name)

        def _load(self) -> Any:
            if self._loaded is None:
                self._loaded = typer.main.get_group(import_module(module).app)
            return self._loaded

    return typer.Typer(cls=Lazy, help=help_text, rich_markup_mode=None, add_completion=False, no_args_is_help=True)
