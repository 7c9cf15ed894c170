"""bm-controller: init, serve, check.

    init    makes the state folder: authority, master key, database, the first access token (shown once)
    serve   runs until SIGTERM or SIGINT
    check   looks at settings and state without changing them

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
    for verb, run in ((init, _init), (serve, _serve), (check, _check)):
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

    settings = config.load(options.config)
    logs.setup(settings.log_level)
    _raise_file_limit()
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


async def _run(settings: "Settings") -> int:
    import asyncio
    import signal

    from controller.serving import Controller

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(settings)
    ports = await controller.start()
    print(f"ready api={ports.api} agents={ports.agents} authority={controller.authority.fingerprint}", flush=True)
    try:
        await stop.wait()
    finally:
        await controller.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
