"""`bmctl version`: what speaks here, and with whom."""

from typing import TYPE_CHECKING

from clients.cli import profile, words
from clients.cli.options import Output
from clients.cli.output import Screen, card, heading, plain

if TYPE_CHECKING:
    from clients.cli.session import Controller


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
