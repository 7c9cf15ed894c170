"""bm-engine: backups by hand on one hypervisor, without a controller.

    bm-engine init     --storage S.json           make the repository (and, with --encrypt, its key)
    bm-engine backup   --storage S.json DOMAIN    full at first, then incremental
    bm-engine list     --storage S.json           what is there; needs no passphrase
    bm-engine reindex  --storage S.json           the catalog; with --definitions FOLDER the domains' XML too
    bm-engine restore  --storage S.json DOMAIN [BACKUP]   into the domain's disks, or --to FOLDER
    bm-engine verify   --storage S.json [SERVER] [BACKUP]
    bm-engine delete   --storage S.json SERVER BACKUP…
    bm-engine cleanup  [--domain DOMAIN]          thaw, end leftover jobs, remove leftover files

The storage file is JSON: {"type": "local", "path": …} or {"type": "sftp", "host", "username", "path", "private_key_file", …}.
The passphrase comes from --passphrase-file, the variable BM_PASSPHRASE, or the terminal; never from an argument.
Only argparse is imported at the top: a library is loaded by the verb that uses it, so that --help costs 30 ms.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module

EXIT_CODES = """exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 not found, 4 refused by the present state,
  5 not permitted or wrong key, 6 storage or libvirt unreachable, 7 data damaged, 8 cancelled"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `bm-engine`."""
    options = _parser().parse_args(arguments)
    sys.exit(import_module("engine.cli_verbs").run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bm-engine",
        description="Back up, restore and check virtual servers of this host.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="json: one document on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _verb(verbs, "init", "make the repository on a storage")
    verb.add_argument("--encrypt", action="store_true", help="make a key, wrapped by the passphrase; for ever")

    verb = _verb(verbs, "backup", "back up a domain")
    verb.add_argument("domain", help="name or UUID")
    verb.add_argument("--type", choices=("incremental", "differential", "full", "copy"), default="incremental")
    verb.add_argument(
        "--consistency", choices=("freeze_or_pause", "freeze", "pause", "none"), default="freeze_or_pause"
    )
    verb.add_argument("--disk", action="append", default=[], metavar="TARGET", help="only this disk; may be repeated")
    verb.add_argument("--full-interval-days", type=int, default=7, help="a new full after so many days; 0: never")
    verb.add_argument("--level", type=int, default=3, help="zstd level 1 to 19, 0 for none")
    verb.add_argument("--compression-threads", type=int, default=1)
    verb.add_argument("--read-limit", type=int, default=0, metavar="BYTES", help="disk bytes a second, 0: no limit")
    verb.add_argument("--upload-limit", type=int, default=0, metavar="BYTES", help="bytes a second, 0: no limit")
    _host(verb)

    verb = _verb(verbs, "list", "list backups on a storage")
    verb.add_argument("server", nargs="?", default="", help="only this server's (id, domain name or UUID)")

    verb = _verb(verbs, "reindex", "read the catalog from the storage alone, as JSON with --output json")
    verb.add_argument("server", nargs="?", default="", help="only this server's (id, domain name or UUID)")
    verb.add_argument("--definitions", default="", metavar="FOLDER", help="write the domains' XML there; needs the key")

    verb = _verb(verbs, "restore", "restore a backup of a domain")
    verb.add_argument("domain", help="server id, domain name or UUID, as `list` shows them")
    verb.add_argument("backup", nargs="?", default="", help="backup id; the latest if left out")
    verb.add_argument("--disk", action="append", default=[], metavar="TARGET", help="only this disk; may be repeated")
    verb.add_argument("--to", default="", metavar="FOLDER", help="write raw files there instead of the domain's disks")
    verb.add_argument("--yes", action="store_true", help="do not ask before the domain's disks are overwritten")
    verb.add_argument("--stop-grace", type=int, default=60, metavar="SECONDS", help="for the guest to shut down")
    _host(verb)

    verb = _verb(verbs, "verify", "read and check every frame")
    verb.add_argument("server", help="server id, domain name or UUID")
    verb.add_argument("backup", nargs="?", default="", help="backup id; all of the server's if left out")
    verb.add_argument("--without-key", action="store_true", help="check the stored bytes only")

    verb = _verb(verbs, "delete", "delete backups that nothing needs")
    verb.add_argument("server", help="server id, domain name or UUID")
    verb.add_argument("backup", nargs="+", help="backup ids")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    _host(verb)

    verb = verbs.add_parser("cleanup", help="tidy up after engines that died")
    verb.add_argument("--domain", default="", help="only this domain; all of this host if left out")
    _host(verb)
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.add_argument("--storage", required=True, metavar="FILE", help="JSON file that describes the storage")
    verb.add_argument("--passphrase-file", default="", metavar="FILE")
    verb.add_argument("--workers", type=int, default=4, help="threads")
    return verb


def _host(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--libvirt", default=os.environ.get("BM_LIBVIRT_URI", "qemu:///system"), metavar="URI")
    verb.add_argument("--scratch", default="/var/lib/backup-manager/scratch", metavar="FOLDER")
    verb.add_argument("--locks", default="/run/backup-manager/locks", metavar="FOLDER")


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
