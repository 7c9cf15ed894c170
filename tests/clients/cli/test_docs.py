"""docs/bmctl.md and bmctl say the same: every verb is on the page, every example is a command that bmctl accepts."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from clients.cli import main
from clients.cli.failures import Exit

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "bmctl.md").read_text()


def verbs(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb that does something, with the words that lead to it."""
    command = command or typer.main.get_command(main.app)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from verbs(command.get_command(None, name), (*path, name))


VERBS = dict(verbs())


def examples() -> list[list[str]]:
    """Return the words of every bmctl command on the page, without `bmctl` itself, comments, pipes and redirections."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    found = []
    for line in blocks.splitlines():
        if line.startswith("bmctl "):
            command = re.split(r"\s[|>]|\s#", line)[0]
            found.append(shlex.split(command)[1:])
    return found


def command_of(words: list[str]) -> tuple[tuple[str, ...], Any]:
    """Return the words that name a verb (or a group that does something by itself), and its command."""
    command: Any = typer.main.get_command(main.app)
    path: list[str] = []
    while hasattr(command, "get_command") and len(path) < len(words):
        below = command.get_command(None, words[len(path)])
        if below is None:
            break
        command = below
        path.append(words[len(path)])
    return tuple(path), command


def advice() -> list[str]:
    """Return every command that our code tells a person to type: `bmctl …` in any text of it, up to the first other word."""
    found = set()
    for folder in ("agent", "clients/cli", "controller", "engine"):
        for text in (file.read_text() for file in (ROOT / folder).rglob("*.py")):
            for node in (
                ast.walk(ast.parse(text)) if "bmctl " in text else ()
            ):  # parsing all takes every test process 5 s
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.update(re.findall(r"(?:`|: )bmctl ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", node.value))
    return sorted(found)


def test_every_verb_is_on_the_page() -> None:
    shown = {command_of(words)[0] for words in examples()}
    assert set(VERBS) - shown == set()
    assert len(VERBS) >= 36


@pytest.mark.feature("E1")
@pytest.mark.parametrize("words", advice())
def test_every_command_that_is_recommended_exists(words: str) -> None:
    path, command = command_of(words.split())
    assert path, words
    assert path in VERBS or len(path) == len(words.split()), words
    assert command is not None


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_every_example_is_accepted(words: list[str]) -> None:
    """Parse the example as bmctl would: unknown verbs, options and values that no option takes are errors."""
    path, command = command_of(words)
    assert path in VERBS or command.invoke_without_command, f"no such verb: {words}"
    command.make_context("bmctl", [word for word in words[len(path) :] if word != "…"])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    result = main.app([*verb, "--help"], prog_name="bmctl", standalone_mode=False)
    text = capsys.readouterr().out
    assert result in {0, None}
    assert text.startswith(f"Usage: bmctl {' '.join(verb)}")
    assert VERBS[verb].help, verb
    for parameter in VERBS[verb].params:
        assert getattr(parameter, "help", None), (verb, parameter.name)


def test_every_exit_code_is_on_the_page() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == {int(code) for code in Exit}


def test_every_variable_and_reason_on_the_page_exists() -> None:
    source = "".join(path.read_text() for path in (Path(__file__).parents[3] / "clients").glob("**/*.py"))
    for name in re.findall(r"`([A-Z][A-Z_]+)`", PAGE):
        assert name in source or name == "XDG_CONFIG_HOME", name
