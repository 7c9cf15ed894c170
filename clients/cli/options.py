"""Arguments and options that several verbs share, each with one wording and one meaning."""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias, TypeVar

import typer

from clients.cli import words
from clients.cli.failures import Usage
from clients.cli.output import Format

Parsed = TypeVar("Parsed")

Output: TypeAlias = Annotated[
    Format, typer.Option("--output", "-o", envvar="BMCTL_OUTPUT", help="For people, or one JSON document for scripts.")
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; for scripts.")]
Wait: TypeAlias = Annotated[bool, typer.Option("--wait", "-w", help="Watch the job until it has ended.")]
Limit: TypeAlias = Annotated[
    int, typer.Option("--limit", "-n", min=0, help="At most this many, newest first; 0 for all.")
]
Since: TypeAlias = Annotated[str, typer.Option("--since", help="Not before: a span such as 2d, or a date.")]
Until: TypeAlias = Annotated[str, typer.Option("--until", help="Before: a span such as 2d, or a date.")]
ServerFilter: TypeAlias = Annotated[str, typer.Option("--server", help="Only this server's: id, external id or name.")]
StorageFilter: TypeAlias = Annotated[str, typer.Option("--storage", help="Only those on this storage: id or name.")]
Disks: TypeAlias = Annotated[list[str] | None, typer.Option("--disk", help="Only this disk, such as vda; repeatable.")]
DiskTypes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--disk-type", metavar="DISK=TYPE", help="Another type for this disk, such as vdb=full; repeatable."),
]
Points: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="DISK=BACKUP", help="This disk from another backup of the server; repeatable."),
]
Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="DISK=PATH", help="This disk into a file or block device on the hypervisor; repeatable."
    ),
]
From: TypeAlias = Annotated[str, typer.Option("--hypervisor", help="From which hypervisor: id or name.")]
RequestId: TypeAlias = Annotated[
    str, typer.Option("--request-id", help="A UUID; the same one twice starts one job. Made up when not given.")
]
HypervisorArgument: TypeAlias = Annotated[str, typer.Argument(metavar="HYPERVISOR", help="Id or name.")]
ServerArgument: TypeAlias = Annotated[str, typer.Argument(metavar="SERVER", help="Id, external id or name.")]
StorageArgument: TypeAlias = Annotated[str, typer.Argument(metavar="STORAGE", help="Id or name.")]
BackupArgument: TypeAlias = Annotated[str, typer.Argument(metavar="BACKUP", help="Id.")]
JobArgument: TypeAlias = Annotated[str, typer.Argument(metavar="JOB", help="Id.")]


def group(help_text: str = "") -> typer.Typer:
    """Return an empty group of verbs; those of bmctl itself have their help in main.py."""
    return typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False, no_args_is_help=True)


def parsed(option: str, text: str, parse: Callable[[str], Parsed]) -> Parsed | None:
    """Return an option's value, None where it was not given. Raises Usage naming the option."""
    if not text:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise Usage(field=option, problem=str(error)) from error


def span(option: str, text: str) -> timedelta | None:
    return parsed(option, text, words.parse_span)


def moment(option: str, text: str) -> datetime | None:
    return parsed(option, text, lambda value: words.parse_moment(value, datetime.now(UTC)))


def request_id(text: str) -> str:
    """Return the request id to send: the one given, or a new one."""
    return str(parsed("--request-id", text, uuid.UUID) or uuid.uuid4())


def by_disk(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Return what is given as DISK=VALUE, each disk once. Raises Usage naming the option."""
    found: dict[str, str] = {}
    for text in texts or ():
        disk, equals, value = text.partition("=")
        if not (disk and equals and value) or disk in found:
            problem = f"{disk} is given twice" if disk in found else f"{text}: has to be like vda=…"
            raise Usage(field=option, problem=problem)
        found[disk] = value
    return found
