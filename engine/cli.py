"""bm-engine: backups by hand on one hypervisor, without a controller.

    test       try a storage, step by step
    init       make the repository (and, with --encrypt, its key)
    backup     full at first, then incremental; a type for each disk
    list       what is there; needs no passphrase          inventory  the same from this host's own catalog
    reindex    the catalog from the storage alone; with --definitions FOLDER the domains' XML too
    restore    any disks of any point: into the domain's disks, to files, to block devices
    verify     read every frame                            delete     backups that nothing needs
    prune      what rules given by hand would delete, and then delete it
    estimate   what the next backup would read
    cleanup    thaw, end leftover jobs, remove leftover files, orphans and checkpoints      heal   the first half of it
    forget     our checkpoints of a domain: its next backups are fulls

The storage file is JSON: {"type": "local", "path": …}, or of the type sftp, s3, ftp or rclone; see cli_storage.py.
The passphrase comes from --passphrase-file, the variable BM_PASSPHRASE, or the terminal; never from an argument.
Only argparse is imported at the top: a library is loaded by the verb that uses it, so that --help costs 30 ms.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Where each verb is done; its module is loaded when it is asked for.
VERBS = {
    "test": "engine.cli_verbs:try_storage",
    "init": "engine.cli_verbs:init",
    "backup": "engine.cli_verbs:backup",
    "list": "engine.cli_verbs:list_backups",
    "inventory": "engine.cli_host:show_inventory",
    "reindex": "engine.cli_verbs:read_catalog",
    "restore": "engine.cli_verbs:restore",
    "verify": "engine.cli_verbs:verify",
    "delete": "engine.cli_verbs:delete",
    "prune": "engine.cli_host:prune",
    "estimate": "engine.cli_host:estimate_domain",
    "cleanup": "engine.cli_host:cleanup",
    "heal": "engine.cli_host:cleanup",
    "forget": "engine.cli_host:forget",
    "s3-cleanup": "engine.cli_host:remove_stale",
    "bundle": "engine.cli_bundle:fetch",
}

EXIT_CODES = """exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 not found, 4 refused by the present state,
  5 not permitted or wrong key, 6 storage or libvirt unreachable, 7 data damaged, 8 cancelled"""


_SERVER = "server id, domain name or UUID"
_SERVER_ONLY = f"only this server's ({_SERVER})"
_PRESETS = (
    *(f"age-{one}" for one in ("1w", "2w", "3w", "4w", "2m", "3m", "6m", "9m", "1y", "2y", "3y", "5y", "7y", "10y")),
    *(f"gfs-{one}" for one in ("1m", "2m", "3m", "6m", "9m", "1y", "2y", "3y", "5y", "7y", "10y")),
    *(f"gfs-dense-{one}" for one in ("1m", "2m", "3m", "6m", "9m", "1y", "2y", "3y", "5y")),
)  # those of retention.py, whose import would cost --help 15 ms; a test compares them


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `bm-engine`."""
    options = _parser().parse_args(arguments)
    sys.exit(import_module("engine.cli_common").run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bm-engine",
        description="Back up, restore and check virtual servers of this host.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        choices=("table", "json"),
        default="table",
        help="json: one document on stdout; a verb's own --json is the same",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    _verb(verbs, "test", "try a storage, step by step; nothing stays there")

    verb = _verb(verbs, "init", "make the repository on a storage")
    verb.add_argument("--encrypt", action="store_true", help="make a key, wrapped by the passphrase; for ever")

    verb = _verb(verbs, "backup", "back up a domain")
    verb.add_argument("domain", help="name or UUID")
    verb.add_argument("--type", choices=("incremental", "differential", "full", "copy"), default="incremental")
    verb.add_argument(
        "--consistency", choices=("freeze_or_pause", "freeze", "pause", "none"), default="freeze_or_pause"
    )
    verb.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="TARGET[=TYPE]",
        help="only this disk, with a type of its own if one is given; may be repeated",
    )
    verb.add_argument("--full-interval-days", type=int, default=7, help="a new full after so many days; 0: never")
    verb.add_argument("--level", type=int, default=3, help="zstd level 1 to 19, 0 for none")
    verb.add_argument("--compression-threads", type=int, default=1)
    verb.add_argument("--read-limit", type=int, default=0, metavar="BYTES", help="disk bytes a second, 0: no limit")
    verb.add_argument("--upload-limit", type=int, default=0, metavar="BYTES", help="bytes a second, 0: no limit")
    _host(verb)

    verb = _verb(verbs, "list", "list backups on a storage", storage=False)
    _ticket(verb, "a restore ticket: stands for the storage; its backup alone is listed")
    verb.add_argument("server", nargs="?", default="", help=_SERVER_ONLY)

    verb = _verb(verbs, "inventory", "list backups that this host's own catalog knows", storage=False)
    verb.add_argument("server", nargs="?", default="", help=_SERVER_ONLY)
    verb.add_argument("--rebuild", action="store_true", help="read the storage, whatever the catalog says")
    _catalog(verb)

    verb = _verb(verbs, "reindex", "read the catalog from the storage alone")
    verb.add_argument("server", nargs="?", default="", help=_SERVER_ONLY)
    verb.add_argument("--definitions", default="", metavar="FOLDER", help="write the domains' XML there; needs the key")
    _catalog(verb)

    verb = _verb(verbs, "restore", "restore disks of a domain", storage=False)
    verb.add_argument("domain", nargs="?", default="", help="server id, domain name or UUID, as `list` shows them")
    verb.add_argument("backup", nargs="?", default="", help="backup id; the latest if left out")
    _ticket(verb, "a restore ticket: stands for storage, key and backup; only to files and devices")
    verb.add_argument("--at", default="", metavar="TIME", help="the latest backup that is not later")
    verb.add_argument("--disk", action="append", default=[], metavar="TARGET", help="only this disk; may be repeated")
    verb.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="TARGET=BACKUP",
        help="this disk as of another backup; may be repeated",
    )
    verb.add_argument("--to", default="", metavar="FOLDER", help="write files there instead of the domain's disks")
    verb.add_argument(
        "--target", action="append", default=[], metavar="TARGET=PATH", help="this disk to that file or block device"
    )
    verb.add_argument("--format", choices=("raw", "qcow2"), default="raw", help="of new files")
    verb.add_argument("--overwrite", action="store_true", help="write over files and block devices that are there")
    verb.add_argument("--yes", action="store_true", help="do not ask before the domain's disks are overwritten")
    verb.add_argument("--stop-grace", type=int, default=60, metavar="SECONDS", help="for the guest to shut down")
    _host(verb)

    verb = _verb(verbs, "verify", "read and check every frame", storage=False)
    _ticket(verb, "a restore ticket: stands for storage, key and backup")
    verb.add_argument("server", nargs="?", default="", help=_SERVER)
    verb.add_argument("backup", nargs="?", default="", help="backup id; all of the server's if left out")
    verb.add_argument("--without-key", action="store_true", help="check the stored bytes only")

    verb = _verb(verbs, "delete", "delete backups that nothing needs")
    verb.add_argument("server", help=_SERVER)
    verb.add_argument("backup", nargs="+", help="backup ids")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    _host(verb)

    _prune(_verb(verbs, "prune", "show what rules would delete, and delete it when that is confirmed"))

    verb = _verb(verbs, "estimate", "show what the next backup of a domain would read", storage=None)
    verb.add_argument("domain", help="name or UUID")
    _host(verb)

    verb = _verb(verbs, "bundle", "fetch the newest of the controller's recovery bundles")
    verb.add_argument("--to", required=True, metavar="FILE", help="where it is put; a file that is there is left alone")
    verb.add_argument("--id", default="", metavar="ID", help="another than the newest")

    verb = _verb(verbs, "cleanup", "tidy up after engines that died", storage=False)
    verb.add_argument("--domain", default="", help="only this domain; all of this host if left out")
    _host(verb)

    verb = _verb(
        verbs, "s3-cleanup", "abort uploads in parts that nobody goes on with, which a bucket keeps and charges for"
    )
    verb.add_argument(
        "--older-than",
        type=int,
        default=168,
        metavar="HOURS",
        help="nothing came for so long, at least 24; default 168",
    )
    verb.add_argument("--dry-run", action="store_true", help="only list them")

    verb = _verb(verbs, "heal", "thaw guests and end leftover backup jobs, no more", storage=None)
    verb.add_argument("--domain", default="", help="only this domain; all of this host if left out")
    _host(verb)

    verb = _verb(verbs, "forget", "remove all our checkpoints of a domain; its next backups are fulls", storage=None)
    verb.add_argument("domain", help="name or UUID")
    _host(verb)
    return parser


def _prune(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("server", help=_SERVER)
    rules = verb.add_argument_group("rules", "a backup stays if any of them selects it, or one of its chain")
    rules.add_argument("--preset", default="", choices=_PRESETS, metavar="NAME", help="age-1w … gfs-3m … gfs-dense-5y")
    rules.add_argument("--keep-days", type=_count, help="all that are younger")
    for bucket in ("daily", "weekly", "monthly", "yearly"):
        rules.add_argument(
            f"--{bucket}", type=_count, metavar="N", help=f"the newest of each of the last N {bucket} ones"
        )
    rules.add_argument("--keep-last", type=_count, metavar="N", help="N chains beside the active one; 2 if left out")
    rules.add_argument(
        "--time-zone", default="", metavar="ZONE", help="where days begin, as Europe/Berlin; this host's"
    )
    rules.add_argument("--trim-tails", action="store_true", help="a chain ends at its last selected backup")
    verb.add_argument("--interval-hours", type=_count, default=24, help="of coming backups, to tell when one will go")
    verb.add_argument("--full-interval-days", type=_count, default=7, help="of coming fulls, likewise")
    verb.add_argument(
        "--yes", action="store_true", help="delete without asking; without it a script only sees the plan"
    )
    verb.add_argument("--unmanaged", action="store_true", help="also on a host that an agent looks after")
    verb.add_argument(
        "--agent-state", default="", metavar="FOLDER", help="the agent's state folder, if not its usual one"
    )
    _host(verb)


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, *, storage: bool | None = True
) -> argparse.ArgumentParser:
    """Add a verb; `storage` says whether it needs one, can do without (False), or has none (None)."""
    verb = verbs.add_parser(name, help=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.add_argument("--json", dest="output", action="store_const", const="json", default=argparse.SUPPRESS)
    verb.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress on stderr")
    if storage is not None:
        verb.add_argument(
            "--storage", required=storage, default="", metavar="FILE", help="JSON file that describes the storage"
        )
        verb.add_argument("--passphrase-file", default="", metavar="FILE")
        verb.add_argument("--workers", type=int, default=4, help="threads")
    return verb


def _ticket(verb: argparse.ArgumentParser, text: str) -> None:
    verb.add_argument("--ticket", default="", metavar="FILE", help=text)


def _catalog(verb: argparse.ArgumentParser) -> None:
    default = os.environ.get("BM_CATALOG", "/var/lib/backup-manager/agent/catalog")
    verb.add_argument("--catalog", default=default, metavar="FOLDER", help="what this host knows of its backups")


def _host(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--libvirt", default=os.environ.get("BM_LIBVIRT_URI", "qemu:///system"), metavar="URI")
    verb.add_argument("--scratch", default="/var/lib/backup-manager/scratch", metavar="FOLDER")
    verb.add_argument("--locks", default="/run/backup-manager/locks", metavar="FOLDER")
    _catalog(verb)


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
