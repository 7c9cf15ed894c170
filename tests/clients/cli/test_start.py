"""What every start of bmctl pays, and what a shell learns from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.bmctl import Bmctl

COMPLETE = """
source <(bmctl completion bash)
COMP_WORDS=({words}) COMP_CWORD={last}
_bmctl_completion bmctl
echo "${{COMPREPLY[@]}}"
"""


def test_help_imports_nothing_heavy() -> None:
    """CPU time is a matter of the machine; what is imported is not. Measured at load 3 on two cores: 154 ms, typer alone 128."""
    program = (
        "import sys\nsys.argv = ['bmctl', '--help']\nfrom clients.cli import main\n"
        "try:\n    main.main()\n"
        "except SystemExit as end:\n"
        "    heavy = ('grpc', 'google.protobuf', 'rich', 'pydantic', 'asyncio', 'ssl', 'cryptography', 'clients.cli.jobs')\n"
        "    print([name for name in heavy if name in sys.modules], end.code, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == "[] 0\n"
    assert "Exit codes" in done.stdout


@pytest.fixture
def shell(bmctl: Bmctl, tmp_path: Path) -> Bmctl:
    """A PATH on which bmctl is this project's."""
    program = tmp_path / "bin" / "bmctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m clients.cli.main "$@"\n')
    program.chmod(0o755)
    bmctl.environment["PATH"] = f"{program.parent}:{bmctl.environment['PATH']}"
    return bmctl


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("bmctl", "ba"), {"backup", "batch"}),
        (("bmctl", "backup", "ver"), {"verify"}),
        (("bmctl", "backup", ""), {"start", "list", "show", "restore", "verify", "ticket", "delete"}),
        (("bmctl", "storage", "add", "s"), {"sftp", "s3"}),
        (("bmctl", "backup", "start", "--ty"), {"--type"}),
        (("bmctl", "backup", "start", "--type", "in"), {"incremental"}),
    ],
)
def test_bash_completes(shell: Bmctl, words: tuple[str, ...], expected: set[str]) -> None:
    quoted = " ".join(f'"{word}"' for word in words)
    script = COMPLETE.format(words=quoted, last=len(words) - 1)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=shell.environment, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == expected, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("shell_name", "word"), [("zsh", "#compdef bmctl"), ("fish", "complete --command bmctl")])
def test_other_shells_get_their_script(bmctl: Bmctl, shell_name: str, word: str) -> None:
    ended = bmctl("completion", shell_name)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(word)


def test_an_unknown_shell_is_a_usage_error(bmctl: Bmctl) -> None:
    assert bmctl("completion", "tcsh").code == 2


def test_no_arguments_show_help(bmctl: Bmctl) -> None:
    ended = bmctl()
    assert ended.code == 2
    assert "Usage: bmctl" in ended.out + ended.err
