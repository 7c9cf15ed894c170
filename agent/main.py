"""`bm-agent`: reads the settings, wires the parts, serves, stops.

bm-agent enroll --config F --controller HOST:PORT --token-file T     once
bm-agent run --config F                                              always
"""

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent import config as settings
from agent.config import Config
from agent.errors import AlreadyRunning
from agent.files import make_folder
from agent.version import AGENT_VERSION
from clients.errors import CallRefused
from engine.errors import BackupManagerError

if TYPE_CHECKING:
    from agent.commands import Commands
    from agent.inventory import Inventory
    from agent.link import Link
    from agent.supervisor import Supervisor

log = logging.getLogger("agent")

FIRST_LOOK_SECONDS = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `bm-agent`; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        config = settings.load(given.config)
        _start_log(config)
        if given.verb == "enroll":
            _enroll(config, given)
        else:
            with _only_instance(config):
                asyncio.run(run(config))
    except (BackupManagerError, CallRefused) as error:
        print(f"bm-agent: {error.message} [{error.reason}]", file=sys.stderr)  # noqa: T201 - the answer to a person
        return 1
    except OSError as error:
        print(f"bm-agent: {error.strerror}: {error.filename}", file=sys.stderr)  # noqa: T201 - likewise
        return 1
    return 0


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Engines that run then go on, and the next agent adopts them."""
    # gRPC costs 0.1 s and 11 MiB to import; --help and a refused setting need neither.
    import socket

    from agent.clock import SystemClock
    from agent.commands import Commands
    from agent.heal import heal_marked
    from agent.host import Host
    from agent.inventory import Inventory
    from agent.journal import open_journal
    from agent.link import Link
    from agent.process import boot_id
    from agent.supervisor import Supervisor
    from agent.telemetry import Feed
    from agent.tickets import remove_expired

    clock, changed, stopping = SystemClock(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    for folder in (config.operations_folder, config.lock_folder, config.tickets_folder):
        make_folder(folder)
    with open_journal(config.journal_file, clock.now(), changed) as journal:
        host = Host(config, clock, journal, Feed(changed), boot_id(), socket.gethostname())
        link = Link(host)
        supervisor = Supervisor(host, link)
        inventory = Inventory(config.libvirt_uri, changed)
        inventory.start()
        log.info("started version=%s state_folder=%s", AGENT_VERSION, config.state_folder)
        commands = Commands(host, supervisor)
        healing = asyncio.create_task(heal_marked(config))
        tidying = asyncio.create_task(remove_expired(config.tickets_folder, clock))
        serving = asyncio.create_task(_serve(supervisor, link, commands, inventory))
        try:
            await asyncio.wait({serving, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            log.info("stopping; engines that run go on")
            serving.cancel()
            healing.cancel()
            tidying.cancel()
            await asyncio.gather(serving, healing, tidying, return_exceptions=True)
            await commands.settle()
            await supervisor.stop()
            inventory.stop()


async def _serve(supervisor: "Supervisor", link: "Link", commands: "Commands", inventory: "Inventory") -> None:
    """First what an earlier agent left, then the controller."""
    await supervisor.recover()
    await inventory.first_look(FIRST_LOOK_SECONDS)
    await link.run(supervisor, commands, inventory)


def _enroll(config: Config, given: argparse.Namespace) -> None:
    from agent.enroll import enroll, read_token

    token = read_token(given.token_file)
    own = asyncio.run(enroll(config, given.controller, token, renew=given.renew))
    print(f"enrolled as hypervisor {own.hypervisor_id}; sessions go to {own.address}")  # noqa: T201 - the answer to a person


@contextmanager
def _only_instance(config: Config) -> Iterator[None]:
    """Hold the lock that one agent per state folder may have. Raises AlreadyRunning."""
    make_folder(config.state_folder)
    file = os.open(config.instance_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise AlreadyRunning(folder=config.state_folder) from None
    try:
        yield
    finally:
        os.close(file)


def _start_log(config: Config) -> None:
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bm-agent", description="Backup Manager's agent on a hypervisor")
    parser.add_argument("--version", action="version", version=f"%(prog)s {AGENT_VERSION}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    enroll = verbs.add_parser("enroll", help="get this hypervisor's certificate with a one-time token")
    enroll.add_argument("--controller", required=True, metavar="HOST:PORT", help="the controller's API port")
    enroll.add_argument("--token-file", required=True, metavar="FILE", help="file with the token; - for stdin")
    enroll.add_argument("--renew", action="store_true", help="replace the identity that this hypervisor has")
    serve = verbs.add_parser("run", help="serve the controller, until SIGTERM")
    for verb in (enroll, serve):
        verb.add_argument("--config", type=Path, default=settings.FILE_DEFAULT, metavar="FILE", help="settings (TOML)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
