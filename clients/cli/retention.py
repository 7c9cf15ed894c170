"""`bmctl retention …`: why backups stay, what goes soon, and what another policy would keep."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from clients.cli import words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import BackupArgument, Limit, Output, ServerFilter, StorageFilter, group
from clients.cli.output import Column, Screen, card, heading, plain, styled
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.retention_pb2 import AppliedRetention, RetentionPolicy, RetentionVerdict
    from clients.gen.backupmanager.v1.retention_service_pb2 import PreviewRetentionResponse

Policy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--retention", help='A preset ("gfs-3m"), numbers ("daily=7,weekly=4"), or "none"; +trim trims tails (R13).'
    ),
]
KeepLast: TypeAlias = Annotated[
    int | None,
    typer.Option("--keep-last", min=0, max=1000, help="Chains kept beside the current one, whatever their age."),
]
_NUMBERS = ("days", "daily", "weekly", "monthly", "yearly")

app = group()


@app.command()
def presets(output: Output = "table") -> None:
    """List the policies that have a name."""
    from clients.gen.backupmanager.v1.retention_service_pb2 import GetRetentionPresetsRequest

    columns = (
        Column("Name", lambda one: one.name),
        *(_number_column(name) for name in _NUMBERS),
        Column("In words", lambda one: one.words, rank=1),
    )

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.retention.GetRetentionPresets, GetRetentionPresetsRequest())
        Screen(output).show_list(reply, "presets", columns, empty="None.")

    run(work)


@app.command()
def explain(backup: BackupArgument, output: Output = "table") -> None:
    """Say why a backup stays, and when it is expected to go."""
    from clients.gen.backupmanager.v1.retention_service_pb2 import GetRetentionVerdictRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(
            controller.retention.GetRetentionVerdict, GetRetentionVerdictRequest(backup_id=backup)
        )
        names = Names() if screen.json else await Names.load(controller, "servers", "storages")
        screen.show(plain(reply), lambda: _verdict_card(screen, reply.verdict, reply.applied, names))

    run(work)


@app.command()
def simulate(
    server: Annotated[str, typer.Argument(metavar="[SERVER]", help="Whose backups; or give --imagine.")] = "",
    storage: Annotated[str, typer.Option("--storage", "-s", help="Where they lie: id or name.")] = "",
    policy: Policy = None,
    keep_last: KeepLast = None,
    time_zone: Annotated[str, typer.Option("--time-zone", help="IANA name.")] = "",
    imagine: Annotated[int, typer.Option("--imagine", min=0, help="Days of imagined backups instead.")] = 0,
    every: Annotated[int, typer.Option("--every", min=1, help="Imagined: hours from one to the next.")] = 24,
    full_every: Annotated[int, typer.Option("--full-every", min=0, help="Imagined: days from full to full.")] = 7,
    limit: Limit = 100,
    output: Output = "table",
) -> None:
    """Show what a policy would keep, before it is saved.

    Over the backups of a server, or over imagined ones. What is not given is as it applies now.
    """
    from clients.gen.backupmanager.v1.retention_service_pb2 import PreviewRetentionRequest

    if bool(server) == bool(imagine):
        raise Usage(field="retention simulate", problem="give either a server and --storage, or --imagine DAYS")
    request = PreviewRetentionRequest(server_id=server, storage_id=storage, time_zone=time_zone)
    if policy is not None:
        request.policy.CopyFrom(parse(policy))
    if keep_last is not None:
        request.keep_last = keep_last
    if imagine:
        request.imagined.interval.FromTimedelta(timedelta(hours=every))
        request.imagined.full_interval_days, request.imagined.days = full_every, imagine

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, more = await controller.every(controller.retention.PreviewRetention, request, "verdicts", limit)
        screen.show(plain(reply), lambda: _trial_card(screen, reply))
        if more:
            screen.note(f"There are more; these are the oldest {limit}. --limit 0 shows all.")

    run(work)


@app.command()
def warnings(
    days: Annotated[int, typer.Option("--days", min=0, max=400, help="So many days ahead; 0 for the setting's.")] = 0,
    server: ServerFilter = "",
    storage: StorageFilter = "",
    limit: Limit = 0,
    output: Output = "table",
) -> None:
    """List the backups that are expected to go soon."""
    from clients.gen.backupmanager.v1.retention_service_pb2 import ListExpirationsRequest

    request = ListExpirationsRequest(days=days, server_id=server, storage_id=storage)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, _ = await controller.every(controller.retention.ListExpirations, request, "expirations", limit)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages")
        columns = (
            Column("Goes", lambda one: words.short_time(words.set_time(one, "expire_time"), screen.now)),
            Column("Server", lambda one: names[one.server_id]),
            Column("Made", lambda one: words.short_time(words.set_time(one, "create_time"), screen.now)),
            Column("Storage", lambda one: names[one.storage_id], rank=1),
            Column("Backup", lambda one: one.backup_id, whole=True),
        )
        screen.show_list(reply, "expirations", columns, empty="Nothing is expected to go so soon.")

    run(work)


def parse(text: str) -> "RetentionPolicy":
    """Return the policy that a text such as `gfs-3m`, `daily=7,weekly=4+trim` or `none` means. Raises Usage."""
    from clients.gen.backupmanager.v1.retention_pb2 import RetentionPolicy

    numbers, trim, _ = text.strip().partition("+trim")
    policy = RetentionPolicy(trim_tails=bool(trim))
    if numbers in {"", "none"}:
        return policy
    if "=" not in numbers:
        policy.preset = numbers
        return policy
    for part in numbers.split(","):
        name, _, count = part.strip().partition("=")
        if name not in _NUMBERS or not count.isdecimal() or len(count) > 6:
            raise Usage(field="--retention", problem=f"{part!r} is not one of {', '.join(_NUMBERS)} with a number")
        setattr(policy, name, int(count))
    return policy


def _number_column(name: str) -> Column:
    return Column(name.capitalize(), lambda one: _count(one.policy, name), right=True)


def _count(policy: "RetentionPolicy", name: str) -> str:
    return str(getattr(policy, name) or "-")


def _reasons(verdict: "RetentionVerdict") -> "Text":
    if not verdict.kept:
        return styled("goes", "bold yellow")
    named = (f"{one.rule.replace('_', ' ')}{f' ({one.of[:8]}…)' if one.of else ''}" for one in verdict.reasons)
    return styled(", ".join(named), "green")


def _applied(applied: "AppliedRetention") -> tuple[tuple[str, str], ...]:
    return (
        ("Policy", f"{applied.words} ({applied.policy_origin})"),
        ("Keep Last", f"{applied.keep_last} ({applied.keep_last_origin})"),
        ("Time zone", applied.time_zone),
    )


def _verdict_card(
    screen: Screen, verdict: "RetentionVerdict", applied: "AppliedRetention", names: Names
) -> "RenderableType":
    facts: tuple[tuple[str, str | Text], ...] = (
        ("Backup", verdict.backup_id),
        ("Server", names[verdict.server_id]),
        ("Storage", names[verdict.storage_id]),
        ("Made", words.long_time(words.set_time(verdict, "create_time"), screen.now)),
        ("Stays because of", _reasons(verdict)),
        ("Expected to go", words.long_time(words.set_time(verdict, "expire_time"), screen.now) or "not in sight"),
        *_applied(applied),
    )
    return card(heading("Retention"), facts)


def _trial_card(screen: Screen, reply: "PreviewRetentionResponse") -> "RenderableType":
    columns = (
        Column("Made", lambda one: words.short_time(words.set_time(one, "create_time"), screen.now)),
        Column("Stays because of", _reasons),
        Column("Expected to go", lambda one: words.short_time(words.set_time(one, "expire_time"), screen.now)),
        Column("Backup", lambda one: one.backup_id or "imagined", rank=1),
    )
    facts = (
        *_applied(reply.applied),
        ("Stays", f"{words.plural(reply.kept_count, 'backup')} in {words.plural(reply.kept_chain_count, 'chain')}"),
        ("Goes", f"{words.plural(reply.going_count, 'backup')}, {words.size(reply.going_bytes)}"),
    )
    return card(heading("Simulation; nothing is deleted"), facts, screen.table(reply.verdicts, columns))
