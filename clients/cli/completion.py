"""`bmctl completion SHELL`: a script for the shell, which asks bmctl itself (by an environment variable) what fits."""

import os
from typing import Annotated, Literal, TypeAlias

import typer

Shell: TypeAlias = Literal["bash", "zsh", "fish"]
VARIABLE = "_BMCTL_COMPLETE"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a completion script for a shell.

    For bash: `source <(bmctl completion bash)`, best in ~/.bashrc.
    """
    from typer._completion_shared import get_completion_script  # no public way leads there without an option in --help

    print(get_completion_script(prog_name="bmctl", complete_var=VARIABLE, shell=shell))


def prepare() -> None:
    """Make the answers to a shell's questions known, if this start is such a question."""
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
