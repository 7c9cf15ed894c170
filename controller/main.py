"""bm-controller: init, serve, check, backup, restore.

    init    makes the state folder: authority, master key, database, the first access token (shown once)
    serve   runs until SIGTERM or SIGINT
    check   looks at settings and state without changing them
    backup  writes an encrypted bundle of what storages cannot give back; beside a serving controller
    restore makes a controller of a bundle, in an empty place

What is heavy is imported inside the verbs: `--help` and a wrong setting need none of it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controller.errors import CannotStart

if TYPE_CHECKING:
    from controller.config import Settings

CONFIG_DEFAULT = Path("/etc/backup-manager/controller.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the process's exit status: 0, or 1 with one line saying why not."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except CannotStart as error:
        print(f"bm-controller: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bm-controller", description="The controller of Backup Manager.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    init = verbs.add_parser("init", help="make the state folder, the authority, and the first access token")
    init.add_argument("--new-token", metavar="NAME", help="when all that exists already: make another admin token")
    serve = verbs.add_parser("serve", help="run until SIGTERM")
    check = verbs.add_parser("check", help="look at settings and state, and change nothing")
    backup = verbs.add_parser("backup", help="write an encrypted bundle of what storages cannot give back")
    backup.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="the bundle; replaced when whole. Left out: only make the recovery key, for the bundles that a storage gets",
    )
    backup.add_argument("--new-key", action="store_true", help="make another recovery key, and show it once")
    restore = verbs.add_parser("restore", help="make a controller of a bundle, in an empty place")
    restore.add_argument("bundle", type=Path, metavar="BUNDLE")
    restore.add_argument("--key-file", type=Path, metavar="FILE", help="with the recovery key; asked for if not given")
    verbs_and_runs = ((init, _init), (serve, _serve), (check, _check), (backup, _backup), (restore, _restore))
    for verb, run in verbs_and_runs:
        verb.add_argument("--config", type=Path, default=CONFIG_DEFAULT, metavar="FILE", help="default: %(default)s")
        verb.set_defaults(run=run)
    return parser


def _init(options: argparse.Namespace) -> int:
    from controller import config, setup

    made = setup.initialize(config.load(options.config), options.new_token)
    print(f"installation: {made.installation_id}")
    print(f"authority: {made.authority_fingerprint}")
    if made.secret:
        print(f"access token: {made.secret}")
        print("The access token is shown this once; it can do everything.", file=sys.stderr)
    else:
        print("It exists already; nothing was changed. Another admin token: --new-token NAME", file=sys.stderr)
    return 0


def _serve(options: argparse.Namespace) -> int:
    import asyncio

    from controller import config, logs
    from engine.memory import keep_connections_small

    settings = config.load(options.config)
    logs.setup(settings.log_level)
    _raise_file_limit()
    keep_connections_small()
    return asyncio.run(_run(settings))


def _raise_file_limit() -> None:
    """Take as many file descriptors as we may: each agent needs one, and what a login shell gives is 1024."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check(options: argparse.Namespace) -> int:
    from controller import config, setup

    findings = setup.examine(config.load(options.config))
    for finding in findings:
        print(f"{'ok ' if finding.good else 'BAD'} {finding.subject}: {finding.text}")
    return 0 if all(finding.good for finding in findings) else 1


def _backup(options: argparse.Namespace) -> int:
    from controller import config, rescue

    written = rescue.backup(config.load(options.config), options.to, new_key=options.new_key)
    if written.file is not None:
        print(f"bundle: {written.file} ({written.server_count} servers, {written.storage_count} storages)")
    elif not written.key:
        print("There is a recovery key already; nothing was changed. Another one: --new-key", file=sys.stderr)
    if written.key:
        print(f"recovery key: {written.key}")
        print("The recovery key is shown this once. Keep it away from the bundle: both together are the installation.",
              file=sys.stderr)  # fmt: skip
    return 0


def _restore(options: argparse.Namespace) -> int:
    import getpass

    from controller import bundle, config, rescue

    try:
        text = options.key_file.read_text(encoding="ascii") if options.key_file else getpass.getpass("Recovery key: ")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise CannotStart(f"cannot read the recovery key: {type(error).__name__}") from error
    made = rescue.restore(config.load(options.config), options.bundle, bundle.parse_key(text))
    print(f"installation: {made.installation_id}")
    print(f"authority: {made.authority_fingerprint}")
    print(f"restored: {made.server_count} servers, as of {made.create_time}; epoch {made.epoch}")
    for name in made.storages:
        print(f"to reconcile: {name}")
    print("Serve, and let agents connect. Nothing is deleted on a storage before it is reconciled: that begins by itself"
          " for those that schedules use, and with `bmctl storage reconcile`.", file=sys.stderr)  # fmt: skip
    return 0


async def _run(settings: "Settings") -> int:
    import asyncio
    import signal

    from controller.serving import Controller
    from engine.memory import give_back_libraries

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(settings)
    ports = await controller.start()
    give_back_libraries()  # a quarter of what an idle controller takes
    print(f"ready api={ports.api} agents={ports.agents} authority={controller.authority.fingerprint}", flush=True)
    try:
        await stop.wait()
    finally:
        await controller.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
