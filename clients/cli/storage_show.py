"""`bmctl storage list`, `show` and `health`: what is known of storages, as people see it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import storage_health, words
from clients.cli.options import Output, StorageArgument
from clients.cli.output import Cell, Column, Screen, card, heading, plain, state, state_of
from clients.cli.overrides import shown, title
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.storage_pb2 import Storage

_NONE = "No storages yet. `bmctl storage add` adds one."


def list_storages(output: Output = "table") -> None:
    """List storages by name."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import ListStoragesRequest

    async def work(controller: Controller) -> None:
        reply, _ = await controller.every(controller.storages.ListStorages, ListStoragesRequest(), "storages")
        Screen(output).show_list(reply, "storages", _COLUMNS, empty=_NONE)

    run(work)


def show(storage: StorageArgument, output: Output = "table") -> None:
    """Show one storage.

    Of its secrets only that they are set, with a fingerprint.
    """

    async def work(controller: Controller) -> None:
        show_storage(Screen(output), await find(controller, storage))

    run(work)


def health(
    storage: Annotated[str, typer.Argument(metavar="[STORAGE]", help="Id or name; all when not given.")] = "",
    output: Output = "table",
) -> None:
    """Show whether hypervisors get into storages, and what fills them.

    Of one storage: the last check from each hypervisor, and the servers that take most room.
    """
    from clients.gen.backupmanager.v1.storage_service_pb2 import (
        ListServerUsagesRequest,
        ListStorageChecksRequest,
        ListStoragesRequest,
    )

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        if not storage:
            reply, _ = await controller.every(controller.storages.ListStorages, ListStoragesRequest(), "storages")
            screen.show_list(reply, "storages", storage_health.columns(screen.now), empty=_NONE)
            return
        found = await find(controller, storage)
        asked = ListStorageChecksRequest(storage_id=found.storage_id)
        checks, _ = await controller.every(controller.storages.ListStorageChecks, asked, "checks")
        largest = ListServerUsagesRequest(storage_id=found.storage_id)
        usages, _ = await controller.every(controller.storages.ListServerUsages, largest, "usages", 10)
        document = {
            "storage_id": found.storage_id,
            "health": plain(found.health),
            "usage": plain(found.usage),
            "checks": [plain(one) for one in checks.checks],
            "largest_servers": [plain(one) for one in usages.usages],
        }
        screen.show(document, lambda: storage_health.show(screen, found, checks.checks, usages.usages))

    run(work)


async def find(controller: Controller, storage: str) -> "Storage":
    """Return a storage by id or name. Raises CallRefused."""
    from clients.gen.backupmanager.v1.storage_service_pb2 import GetStorageRequest

    return (await controller.call(controller.storages.GetStorage, GetStorageRequest(storage_id=storage))).storage


def place_of(storage: "Storage") -> str:
    """Return a storage's type and place in one line, as a URL where that is usual."""
    kind = storage.WhichOneof("config")
    if kind in {"sftp", "ftp"}:
        place: Any = getattr(storage, kind)
        usual = {"sftp": 22, "ftp": 21}[kind]
        port = f":{place.port}" if place.port not in {0, usual} else ""
        scheme = "ftps" if kind == "ftp" and not place.tls_disabled else kind
        return f"{scheme}://{place.username}@{place.host}{port}{place.path}"
    if kind == "s3":
        prefix = f"/{storage.s3.prefix}" if storage.s3.prefix else ""
        return f"s3://{storage.s3.bucket}{prefix}"
    if kind == "rclone":
        return f"rclone {storage.rclone.remote}:{storage.rclone.path}"
    return f"local {storage.local.path}"


def _particulars(storage: "Storage") -> list[tuple[str, Cell]]:
    """Return what only storages of this type have, as facts; what is as usual is left out."""
    match storage.WhichOneof("config"):
        case "sftp":
            return [("Host key", storage.sftp.host_key), ("From", storage.sftp.bind_address)]
        case "s3":
            s3 = storage.s3
            part = words.size(s3.part_size_bytes) if s3.part_size_bytes else "chosen by size"
            return [
                ("Server", s3.endpoint or "AWS"),
                ("Region", s3.region or "us-east-1"),
                ("Access key", s3.access_key),
                ("Parts", f"{s3.concurrency or 8} at once, {part}"),
                ("Addressing", words.enum_label(s3, "addressing")),
                ("Authority", "its own certificate" if s3.ca_certificate else ""),
                ("From", s3.bind_address),
            ]
        case "ftp":
            ftp = storage.ftp
            trust = "its certificate is not checked" if ftp.skip_tls_verify else "its certificate is checked"
            return [
                ("TLS", "off: the password and the backups go in clear" if ftp.tls_disabled else trust),
                ("Authority", "its own certificate" if ftp.ca_certificate else ""),
                ("From", ftp.bind_address),
            ]
        case "rclone":
            forced = "a remote that is refused else is accepted" if storage.rclone.force else ""
            return [("Forced", forced), ("From", storage.rclone.bind_address)]
    return []


def _state(storage: "Storage") -> "Text":
    if storage.deletes_blocked and storage.enabled and not storage.read_only:
        return state("deletes blocked")
    return state("disabled" if not storage.enabled else "read-only" if storage.read_only else "enabled")


_COLUMNS = (
    Column("Name", lambda one: one.name),
    Column("State", _state),
    Column("Health", lambda one: state_of(one.health)),
    Column("Free", lambda one: words.size(one.usage.free_bytes), right=True, rank=1),
    Column("Backups", lambda one: str(one.backup_count), right=True),
    Column("Stored", lambda one: words.size(one.stored_bytes), right=True),
    Column("Encrypted", lambda one: "yes" if one.encryption.enabled else "no", rank=2),
    Column("Place", place_of, rank=1),
    Column("Storage", lambda one: one.storage_id, rank=3, whole=True),
)


def show_storage(screen: Screen, storage: "Storage") -> None:
    screen.show({"storage": plain(storage)}, lambda: _card(screen, storage))


def _card(screen: Screen, storage: "Storage") -> "RenderableType":
    compression, limits = storage.compression, storage.limits
    facts: tuple[tuple[str, Cell], ...] = (
        ("Storage", storage.storage_id),
        ("Place", place_of(storage)),
        *_particulars(storage),
        (
            "Backups",
            f"{storage.backup_count}, {words.size(storage.stored_bytes)} stored" if storage.backup_count else "none",
        ),
        (
            "Deletes",
            f"blocked until it is reconciled: bmctl storage reconcile {storage.name}"
            if storage.deletes_blocked
            else "",
        ),
        ("Health", storage_health.sentence(storage, screen.now)),
        ("Usage", storage_health.usage_line(storage.usage)),
        ("Compression", f"zstd, level {compression.level or 3}" if compression.enabled else "off"),
        (
            "Encryption",
            f"on, key {storage.encryption.key_id or 'not made yet'}" if storage.encryption.enabled else "off",
        ),
        ("Workers", str(limits.worker_threads or 4)),
        *_defaults(storage),
        ("Upload limit", words.rate(limits.bandwidth_bytes_per_second)),
        ("Read limit", words.rate(limits.read_bytes_per_second)),
        ("Disk priority", words.enum_label(limits, "io_priority")),
        ("CPU priority", words.enum_label(limits, "cpu_priority")),
        ("Secrets set", "\n".join(f"{one.name}  {one.fingerprint}" for one in storage.secrets)),
        ("Repository", storage.repository_id),
        ("Made", words.long_time(words.set_time(storage, "create_time"), screen.now)),
        ("Changed", words.long_time(words.set_time(storage, "update_time"), screen.now)),
    )
    return card(heading(storage.name, _state(storage)), facts)


def _defaults(storage: "Storage") -> list[tuple[str, str]]:
    """Return what the storage says of its jobs, as facts."""
    given = [field.name for field, _ in storage.defaults.ListFields()]
    return [(title(name).capitalize(), shown(name, storage.defaults)) for name in given]
