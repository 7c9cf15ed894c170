"""What only a person, a file or the environment may say: yes, and secrets. Never an argument: others see those.

a secret   --…-file F  (`-` is stdin)  >  the environment variable  >  a hidden prompt, where there is a terminal
a yes      --yes                       >  a question, where there is a terminal
"""

from __future__ import annotations

import getpass
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clients.cli.failures import Declined, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET_BYTES_MAX = 64 << 10  # an RSA key of 16384 bits is 13 KB


def confirm(question: str, *, yes: bool) -> None:
    """Return if `--yes` was given or a person says yes; raise Declined for a no, Usage where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Usage(field="--yes", problem="this asks for a confirmation, and nobody can be asked here")
    print(f"\n{question} [y/N] ", end="", file=sys.stderr, flush=True)
    with _interruptible():
        answer = sys.stdin.readline()
    if answer.strip().lower() not in {"y", "yes"}:
        raise Declined


def possible() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def line(question: str, default: str = "") -> str:
    """Return what a person types, or `default` for an empty answer. Raises Declined where the input ends."""
    shown = f" [{default}]" if default else ""
    print(f"{question}{shown}: ", end="", file=sys.stderr, flush=True)
    with _interruptible():
        answer = sys.stdin.readline()
    if not answer:
        raise Declined
    return answer.strip() or default


def yes(question: str) -> bool:
    """Return whether a person says yes; an empty answer is a no."""
    return line(f"{question} [y/N]").lower() in {"y", "yes"}


def secret(what: str, *, option: str, file: str, variable: str, twice: bool = False) -> str:
    """Return a secret from a file, the environment or a hidden prompt; Usage names `option` where there is none.

    Of a file the last line's end is left out. `twice` asks for it again at a prompt, for what cannot be recovered.
    """
    found = given_secret(option=option, file=file, variable=variable)
    if found:
        return found
    if not sys.stdin.isatty():
        raise Usage(field=option, problem=f"{what} is needed: give a file, or set {variable}")
    with _interruptible():
        typed = getpass.getpass(f"{what[0].upper()}{what[1:]}: ")
        again = getpass.getpass("Once more: ") if twice and typed else typed
    if not typed:
        raise Usage(field=option, problem=f"{what} is empty")
    if again != typed:
        raise Usage(field=option, problem="the two do not agree")
    return typed


def given_secret(*, option: str, file: str, variable: str) -> str:
    """Return a secret from a file or the environment, "" where neither says one."""
    if not file:
        return os.environ.get(variable, "")
    text = read_file(file, option=option).removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise Usage(field=option, problem=f"{file} is empty")
    return text


def read_file(file: str, *, option: str, bytes_max: int = SECRET_BYTES_MAX) -> str:
    """Return the text of a small file, `-` for stdin. Usage names `option` and says nothing of the content."""
    try:
        with open(0, "rb", closefd=False) if file == "-" else Path(file).open("rb") as stream:
            data = stream.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise Usage(field=option, problem=f"{file} is larger than {bytes_max} bytes")
        return data.decode()
    except OSError as error:
        raise Usage(field=option, problem=f"{file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise Usage(field=option, problem=f"{file} is not text") from None  # the cause would quote it


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a question at once: asyncio's own handler would wait for the event loop, which waits for the answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
