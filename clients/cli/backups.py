"""`bmctl backup …`: making, seeing, restoring, checking and deleting restore points."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, get_args

import typer

from clients.cli import ask, words
from clients.cli.failures import Usage
from clients.cli.names import Names
from clients.cli.options import (
    BackupArgument,
    Disks,
    DiskTypes,
    From,
    Limit,
    Output,
    Points,
    RequestId,
    ServerArgument,
    ServerFilter,
    Since,
    StorageFilter,
    Targets,
    Until,
    Wait,
    Yes,
    by_disk,
    group,
    moment,
    request_id,
    span,
)
from clients.cli.output import Column, Screen, card, heading, plain, state_of, styled
from clients.cli.results import DISKS, SKIPPED, conclude
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clients.gen.backupmanager.v1.backup_pb2 import Backup
    from clients.gen.backupmanager.v1.backup_service_pb2 import (
        PreviewDeleteResponse,
        PreviewRestoreRequest,
        PreviewRestoreResponse,
    )

Type: TypeAlias = Literal["full", "incremental", "differential", "copy"]
Format: TypeAlias = Literal["raw", "qcow2"]
Consistency: TypeAlias = Literal["freeze-or-pause", "freeze", "pause", "none"]


class Kind(StrEnum):  # typer takes a list of an enum, and none of a Literal
    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"
    COPY = "copy"


class BackupState(StrEnum):
    AVAILABLE = "available"
    DAMAGED = "damaged"
    MISSING = "missing"


OverrideAccess: TypeAlias = Annotated[
    bool, typer.Option("--override-access", help="Also where the access level is Disabled; it is recorded.")
]

app = group()

_NONE = "No such backups. `bmctl backup start SERVER --storage NAME` makes one."


@app.command()
def start(
    server: ServerArgument,
    storage: Annotated[str, typer.Option("--storage", "-s", help="Where it goes: id or name.")],
    backup_type: Annotated[
        Type | None, typer.Option("--type", help="Incremental where possible, else full, when not given.")
    ] = None,
    consistency: Annotated[
        Consistency | None, typer.Option("--consistency", help="Freeze, else a brief pause, when not given.")
    ] = None,
    disk: Disks = None,
    override_access: OverrideAccess = False,
    disk_type: DiskTypes = None,
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Start a backup of a server."""
    from clients.gen.backupmanager.v1 import disk_pb2
    from clients.gen.backupmanager.v1.backup_service_pb2 import StartBackupRequest

    request = StartBackupRequest(
        server_id=server,
        storage_id=storage,
        disks=disk,
        override_access=override_access,
        request_id=request_id(id_of_request),
    )
    if backup_type:
        request.type = words.enum_value(disk_pb2.BackupType, "BACKUP_TYPE_", backup_type)
    for name, kind in by_disk("--disk-type", disk_type).items():
        if kind not in get_args(Type):
            raise Usage(field="--disk-type", problem=f"{name}={kind}: the type is one of {', '.join(get_args(Type))}")
        request.disk_types[name] = words.enum_value(disk_pb2.BackupType, "BACKUP_TYPE_", kind)
    if consistency:
        request.consistency = words.enum_value(disk_pb2.ConsistencyMode, "CONSISTENCY_MODE_", consistency)

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.backups.StartBackup, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


@app.command("list")
def list_backups(
    server: ServerFilter = "",
    storage: StorageFilter = "",
    backup_type: Annotated[
        list[Kind] | None, typer.Option("--type", help="Only those with a disk of this type; repeatable.")
    ] = None,
    state: Annotated[
        list[BackupState] | None, typer.Option("--state", help="Only those in this state; repeatable.")
    ] = None,
    encrypted: Annotated[
        bool | None, typer.Option("--encrypted/--not-encrypted", help="Only encrypted ones, or only others.")
    ] = None,
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
    output: Output = "table",
) -> None:
    """List backups, newest first."""
    from clients.gen.backupmanager.v1 import backup_pb2, disk_pb2
    from clients.gen.backupmanager.v1.backup_service_pb2 import ListBackupsRequest

    request = ListBackupsRequest(server_id=server, storage_id=storage, encrypted=encrypted)
    for one in state or ():
        request.states.append(words.enum_value(backup_pb2.BackupState, "BACKUP_STATE_", one))
    for word in backup_type or ():
        request.types.append(words.enum_value(disk_pb2.BackupType, "BACKUP_TYPE_", word))
    if (start_time := moment("--since", since)) is not None:
        request.start_time.FromDatetime(start_time)
    if (end_time := moment("--until", until)) is not None:
        request.end_time.FromDatetime(end_time)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply, more = await controller.every(controller.backups.ListBackups, request, "backups", limit)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages")
        screen.show_list(reply, "backups", _columns(screen, names), empty=_NONE)
        if more:
            screen.note(f"There are more; these are the newest {limit}. --limit 0 shows all.")

    run(work)


@app.command()
def show(backup: BackupArgument, output: Output = "table") -> None:
    """Show one backup with its disks."""
    from clients.gen.backupmanager.v1.backup_service_pb2 import GetBackupRequest

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.backups.GetBackup, GetBackupRequest(backup_id=backup))
        screen = Screen(output)
        names = Names() if screen.json else await Names.load(controller, "servers", "storages")
        screen.show({"backup": plain(reply.backup)}, lambda: _card(screen, reply.backup, names))

    run(work)


@app.command()
def restore(
    backup: Annotated[str, typer.Argument(metavar="[BACKUP]", help="Id; or give --server for its latest.")] = "",
    server: Annotated[str, typer.Option("--server", help="Restore this server's latest backup.")] = "",
    disk: Disks = None,
    to_folder: Annotated[
        str, typer.Option("--to-folder", help="Write new files into this folder on the hypervisor instead.")
    ] = "",
    override_access: OverrideAccess = False,
    during_batch: Annotated[
        bool, typer.Option("--during-batch", help="Do not wait for a batch's end; run when those in progress are done.")
    ] = False,
    point: Points = None,
    target: Targets = None,
    image_format: Annotated[Format | None, typer.Option("--format", help="Of the files; raw when not given.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over files and block devices that are there already.")
    ] = False,
    id_of_request: RequestId = "",
    yes: Yes = False,
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Restore a backup.

    Over the disks of its server, which is stopped for it and started again, or into files and block devices. Shows what
    would be overwritten, and asks.
    """
    from clients.gen.backupmanager.v1 import disk_pb2
    from clients.gen.backupmanager.v1.backup_service_pb2 import PreviewRestoreRequest, StartRestoreRequest

    if bool(backup) == bool(server):
        raise Usage(field="BACKUP", problem="give either the id of a backup, or --server for its latest")
    points, targets = by_disk("--point", point), by_disk("--target", target)
    kinds = disk_pb2.ImageFormat
    file_format = (
        words.enum_value(kinds, "IMAGE_FORMAT_", image_format)
        if image_format
        else kinds.Value("IMAGE_FORMAT_UNSPECIFIED")
    )

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        asked = PreviewRestoreRequest(
            backup_id=backup, server_id=server, disks=disk, target_folder=to_folder, points=points, targets=targets,
            target_format=file_format, overwrite=overwrite,
        )  # fmt: skip
        preview = await controller.call(controller.backups.PreviewRestore, asked)
        names = await Names.load(controller, "servers", "storages")
        screen.side.print(_restore_preview(screen, preview, names, asked))
        question = "Write these files?" if to_folder or targets else f"Overwrite {', '.join(preview.disks)}?"
        ask.confirm(question, yes=yes)
        request = StartRestoreRequest(
            backup_id=preview.backup.backup_id,
            disks=disk,
            target_folder=to_folder,
            points=points,
            targets=targets,
            target_format=file_format,
            overwrite=overwrite,
            confirmation=preview.confirmation,
            override_access=override_access,
            request_id=request_id(id_of_request),
            during_batch=during_batch,
        )
        reply = await controller.call(controller.backups.StartRestore, request)
        await conclude(controller, screen, reply.job_id, wait=wait)

    run(work)


@app.command()
def verify(
    backup: BackupArgument,
    hypervisor: From = "",
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Check every frame of a backup.

    Those of the backups that it needs too. Needs no key.
    """
    from clients.gen.backupmanager.v1.backup_service_pb2 import StartVerifyRequest

    request = StartVerifyRequest(backup_id=backup, hypervisor_id=hypervisor, request_id=request_id(id_of_request))

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.backups.StartVerify, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


@app.command()
def ticket(
    backup: BackupArgument,
    hypervisor: Annotated[
        str, typer.Option("--hypervisor", help="Where it is left: id or name; the server's when not given.")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", help="After a span from 5m to 7d, such as 12h; 24h when not given.")
    ] = "",
    disk: Disks = None,
    override_access: OverrideAccess = False,
    id_of_request: RequestId = "",
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Leave a restore ticket on a hypervisor.

    A file for its root alone, with which `bm-engine` restores this backup to files there, without the controller; it expires by
    itself. With --wait the ready command is shown.
    """
    from clients.gen.backupmanager.v1.backup_service_pb2 import CreateRestoreTicketRequest

    request = CreateRestoreTicketRequest(
        backup_id=backup,
        hypervisor_id=hypervisor,
        disks=disk,
        override_access=override_access,
        request_id=request_id(id_of_request),
    )
    if (lifetime := span("--expires", expires)) is not None:
        request.lifetime.FromTimedelta(lifetime)

    async def work(controller: Controller) -> None:
        reply = await controller.call(controller.backups.CreateRestoreTicket, request)
        await conclude(controller, Screen(output), reply.job_id, wait=wait)

    run(work)


@app.command()
def delete(
    backup: Annotated[list[str], typer.Argument(metavar="BACKUP...", help="Ids; of one server, on one storage.")],
    hypervisor: From = "",
    id_of_request: RequestId = "",
    yes: Yes = False,
    wait: Wait = False,
    output: Output = "table",
) -> None:
    """Delete backups.

    Shows all that would go, those that cannot live without the given ones too, and asks.
    """
    from clients.gen.backupmanager.v1.backup_service_pb2 import PreviewDeleteRequest, StartDeleteRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        preview = await controller.call(controller.backups.PreviewDelete, PreviewDeleteRequest(backup_ids=backup))
        names = await Names.load(controller, "servers", "storages")
        screen.side.print(delete_preview(screen, preview, names, set(backup)))
        ask.confirm(f"Delete {words.plural(len(preview.backups), 'backup')} for good?", yes=yes)
        request = StartDeleteRequest(
            backup_ids=backup,
            confirmation=preview.confirmation,
            hypervisor_id=hypervisor,
            request_id=request_id(id_of_request),
        )
        reply = await controller.call(controller.backups.StartDelete, request)
        await conclude(controller, screen, reply.job_id, wait=wait)

    run(work)


def type_of(backup: "Backup") -> str:
    """Return a backup's type in a word: its disks', or `mixed` where these differ."""
    types = {words.enum_label(disk, "type") for disk in backup.disks}
    return types.pop() if len(types) == 1 else "mixed" if types else "-"


def _columns(screen: Screen, names: Names) -> tuple[Column, ...]:
    return (
        Column("Backup", lambda one: one.backup_id, whole=True),
        Column("Made", lambda one: words.short_time(words.set_time(one, "create_time"), screen.now)),
        Column("Server", lambda one: names[one.server_id]),
        Column("Type", type_of),
        Column("State", state_of, rank=3),
        Column("Stored", lambda one: words.size(one.stored_bytes), right=True, rank=1),
        Column("Data", lambda one: words.size(_data_bytes(one)), right=True, rank=5),
        Column("Storage", lambda one: names[one.storage_id], rank=2),
        Column("Consistency", lambda one: words.enum_label(one, "consistency"), rank=4),
        Column("Encrypted", lambda one: "yes" if one.encrypted else "no", rank=6),
    )


def _data_bytes(backup: "Backup") -> int:
    return sum(disk.data_bytes for disk in backup.disks)


def _card(screen: Screen, backup: "Backup", names: Names) -> "RenderableType":
    facts = (
        ("Backup", backup.backup_id),
        ("Made", words.long_time(words.set_time(backup, "create_time"), screen.now)),
        ("Server", names[backup.server_id]),
        ("Domain", backup.domain_name),
        ("Storage", names[backup.storage_id]),
        ("Folder", backup.path),
        ("Consistency", words.enum_label(backup, "consistency")),
        ("Encrypted", "yes" if backup.encrypted else "no"),
        ("Data", words.size(_data_bytes(backup))),
        ("Stored", words.size(backup.stored_bytes)),
        ("Job", backup.job_id),
    )
    parts = [screen.table(backup.disks, (*DISKS, Column("SHA-256", lambda one: one.sha256, rank=3, whole=True)))]
    if backup.skipped_disks:
        parts.append(screen.table(backup.skipped_disks, SKIPPED))
    return card(heading(f"{type_of(backup)} backup", state_of(backup)), facts, *parts)


def _restore_preview(
    screen: Screen, preview: "PreviewRestoreResponse", names: Names, asked: "PreviewRestoreRequest"
) -> "RenderableType":
    """Return what a restore would do, the loss first in red: whoever confirms has read it."""
    backup = preview.backup
    wanted = set(preview.disks)
    sizes = {disk.disk: words.size(disk.size_bytes) for disk in backup.disks if disk.disk not in asked.points}
    if asked.target_folder or asked.targets:
        target = f"new files in {asked.target_folder}" if asked.target_folder else "the given targets"
        warning = styled("  The server's own disks stay as they are.", "green")
        if asked.overwrite:
            warning = styled(
                "  The server's own disks stay as they are; files and devices there are written over.", "bold red"
            )
    else:
        target = f"the disks of {names[backup.server_id]}"
        stop = " The server is stopped for it and started again." if preview.stops_server else " The server is off."
        warning = styled(f"  What is on {', '.join(preview.disks)} now is lost.{stop}", "bold red")
    facts = (
        ("From", f"{type_of(backup)} backup {backup.backup_id}"),
        ("Made", words.long_time(words.set_time(backup, "create_time"), screen.now)),
        ("On", names[backup.storage_id]),
        ("Reads", words.plural(len(preview.chain_backup_ids), "backup")),
        ("To", target),
        ("State", state_of(backup)),
    )
    columns = [Column("Disk", lambda one: one), Column("Size", lambda one: sizes.get(one, "-"), right=True)]
    if asked.points:
        columns.append(Column("From backup", lambda one: asked.points.get(one, backup.backup_id), whole=True))
    if asked.targets:
        columns.append(Column("To", lambda one: asked.targets.get(one, "-"), whole=True))
    return card(heading("Restore"), facts, warning, screen.table(sorted(wanted), tuple(columns)))


def delete_preview(screen: Screen, preview: "PreviewDeleteResponse", names: Names, asked: set[str]) -> "RenderableType":
    """Return all that a deletion would remove; what was not asked for and goes along stands out."""
    columns = (
        *(
            column
            for column in _columns(screen, names)
            if column.title in {"Backup", "Made", "Server", "Type", "Stored"}
        ),
        Column(
            "Why", lambda one: "asked for" if one.backup_id in asked else styled("needs one of these", "bold yellow")
        ),
    )
    facts = (
        ("Goes", words.plural(len(preview.backups), "backup")),
        ("Frees", words.size(preview.stored_bytes)),
    )
    return card(heading("Delete"), facts, screen.table(preview.backups, columns))
