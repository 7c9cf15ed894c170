"""`bmctl version` and `bmctl recovery`: what speaks here, with whom, and what would bring it back."""

from typing import TYPE_CHECKING, Final

from clients.cli import profile, words
from clients.cli.options import Output
from clients.cli.output import Screen, card, heading, plain

if TYPE_CHECKING:
    from clients.cli.output import Cell
    from clients.cli.session import Controller
    from clients.gen.backupmanager.v1.system_service_pb2 import GetRecoveryResponse


def version(output: Output = "table") -> None:
    """Show versions, and as whom bmctl is logged in."""
    from importlib.metadata import version as version_of

    from clients.cli.session import run
    from clients.gen.backupmanager.v1.system_service_pb2 import GetVersionRequest

    screen, own = Screen(output), version_of("backup-manager")
    if profile.find() is None:
        screen.show({"bmctl": {"version": own}, "controller": None}, lambda: f"bmctl {own}, not logged in")
        return

    async def work(controller: "Controller") -> None:
        reply = await controller.call(controller.system.GetVersion, GetVersionRequest())
        facts = (
            ("bmctl", own),
            ("Controller", f"{reply.version} at {controller.profile.address}"),
            ("Installation", reply.installation_id),
            ("Authority", controller.profile.fingerprint),
            ("Token", f"{reply.token_name} ({words.enum_label(reply, 'token_scope')})"),
        )
        document = {"bmctl": {"version": own}, "controller": plain(reply)}
        screen.show(document, lambda: card(heading("Backup Manager"), facts))

    run(work)


def recovery(output: Output = "table") -> None:
    """Show what would bring this controller back, and what a loss has left blocked.

    Which storage gets the bundles is a setting: `bmctl settings set bundle-storage-id=NAME`.
    """
    from clients.cli.session import run
    from clients.gen.backupmanager.v1.system_service_pb2 import GetRecoveryRequest

    screen = Screen(output)

    async def work(controller: "Controller") -> None:
        reply = await controller.call(controller.system.GetRecovery, GetRecoveryRequest())
        screen.show(plain(reply), lambda: card(heading("Recovery"), _recovery_facts(screen, reply)))

    run(work)


_RESUME: Final = "retention_resume_time"


def _until(screen: Screen, reply: "GetRecoveryResponse") -> str:
    when = words.long_time(words.set_time(reply, _RESUME), screen.now)
    return f"{when}; look at schedules and policies until then"


def _recovery_facts(screen: Screen, reply: "GetRecoveryResponse") -> "tuple[tuple[str, Cell], ...]":
    if not reply.storage_id:
        where, newest = "nowhere: bmctl settings set bundle-storage-id=NAME", ""
    else:
        where, newest = f"storage {reply.storage_name}", "none yet"
    if reply.HasField("newest"):
        when = words.long_time(words.set_time(reply.newest, "create_time"), screen.now)
        newest = f"{when}, {words.size(reply.newest.stored_bytes)}"
    blocked = "\n".join(f"{one.name}: bmctl storage reconcile {one.name}" for one in reply.blocked_storages)
    return (
        ("Bundles go to", where),
        ("Newest", newest),
        ("Bundle", reply.newest.bundle_id),
        ("Being written", "one more" if reply.writing else ""),
        ("Last try failed", reply.failure.message),
        ("Memory lost", f"{reply.epoch - 1} times" if reply.epoch > 1 else "never"),
        ("Deletes blocked", blocked or "nowhere"),
        ("Retention", f"deletes nothing before {_until(screen, reply)}" if reply.HasField(_RESUME) else ""),
    )
