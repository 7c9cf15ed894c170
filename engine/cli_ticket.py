"""What bm-engine's verbs do with a restore ticket instead of a storage file, a passphrase and a backup's id (M11)."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.cli_common import make_job, run_verb
from engine.cli_print import print_backups, print_restore, print_verify
from engine.console import ConsoleReport
from engine.errors import BackupNotFound, InvalidSpec
from engine.reindex import reindex
from engine.spec import Settings
from engine.storage.open import open_storage
from engine.ticket import Ticket, load_ticket
from engine.work import Work


def ticket_of(options: argparse.Namespace, instead: Sequence[str]) -> Ticket:
    """Return the ticket that was given, if none of the options in `instead` was, for which it stands. Raises what `load_ticket` does."""
    for name in (one for one in instead if getattr(options, one)):
        raise InvalidSpec(
            field=name.replace("_", "-"), problem="cannot be given with a ticket, which stands for all of that"
        )
    return load_ticket(Path(options.ticket), datetime.now(UTC))


def restore_by_ticket(options: argparse.Namespace, to_files: dict[str, Any]) -> int:
    """Restore the one backup that a ticket is for; it never writes over a domain's disks."""
    instead = ("domain", "storage", "passphrase_file", "at", "point", "yes")
    ticket = ticket_of(options, instead)
    if not (to_files["target_folder"] or to_files["targets"]):
        raise InvalidSpec(field="--to", problem="or --target is needed: a ticket restores to files and devices")
    job = replace(ticket.job(tuple(options.disk)), **to_files)
    return run_verb(options, make_job(restore=job), ticket.storage, Settings(workers=options.workers), print_restore)


def verify_by_ticket(options: argparse.Namespace) -> int:
    """Check every frame of the one backup that a ticket is for, and of those that it needs."""
    ticket = ticket_of(options, ("server", "storage", "passphrase_file", "without_key"))
    settings = Settings(workers=options.workers)
    return run_verb(options, make_job(verify=ticket.check()), ticket.storage, settings, print_verify)


def list_by_ticket(options: argparse.Namespace) -> int:
    """Show the one backup that a ticket is for. Raises BackupNotFound where it is gone."""
    ticket = ticket_of(options, ("server", "storage", "passphrase_file"))
    report = ConsoleReport(quiet=True)
    with open_storage(ticket.storage) as storage:
        found = reindex(storage, ticket.server_id, {}, Work(report, Settings()))
    records = [one for one in report.records if one["backup"]["backup_id"] == ticket.backup_id]
    unreadable = [one for one in found.unreadable if ticket.backup_id in one]
    if not records and not unreadable:
        raise BackupNotFound(backup_id=ticket.backup_id, server_id=ticket.server_id)
    print_backups(options, records, unreadable)
    return 0
