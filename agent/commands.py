"""One handler per command, and one effect per command_id, however often it is delivered.

Command ──► known? receipt only
        ──► a ticket to revoke? done, as often as it comes ──► CommandReceipt
        ──► on disk (spec in its folder, then the journal) ──► CommandReceipt ──► supervisor
        ──► not understood, or not possible: a rejection in the journal ──► CommandReceipt
"""

import asyncio
import logging
import sqlite3

from agent import convert, convert_results
from agent.errors import AgentError, CommandLate, CommandUnsupported
from agent.folder import Folder
from agent.host import Host
from agent.supervisor import Supervisor
from agent.tickets import revoke
from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2
from engine import spec
from engine.errors import BackupManagerError, EngineError
from engine.ids import is_id
from engine.ticket import SUFFIX

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 120.0  # for a command that brings none


class Commands:
    """Belongs to the event loop; one command at a time. `settle` last."""

    def __init__(self, host: Host, supervisor: Supervisor) -> None:
        self._host = host
        self._supervisor = supervisor
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[bool]] = set()

    async def take(self, command: command_pb2.Command) -> bool:
        """Make a command's effect happen once; tell whether a receipt may be given.

        Without a receipt the controller sends it again, or gives it up after its own deadline. It goes on when the caller
        is cancelled: a session that ends must not leave half of a command, one half on disk and the other gone.
        """
        task = asyncio.create_task(self._take(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Wait until the commands in hand are dealt with."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, command: command_pb2.Command) -> bool:
        async with self._turn:
            return await self._take_one(command)

    async def _take_one(self, command: command_pb2.Command) -> bool:
        if not command.command_id:
            log.error("a command without an id was ignored job_id=%s", command.job_id)
            return False
        try:
            if command.WhichOneof("body") == "revoke_ticket":
                return await self._revoke_ticket(command)
            if await self._host.journal.knows(command.command_id):
                return True
            # A cancel adds no event but an end, and may be what empties the journal.
            if command.WhichOneof("body") != "cancel" and await self._host.journal.overfull():
                log.error("no command is taken while so many events wait command_id=%s", command.command_id)
                return False
            await self._take_new(command)
        except (sqlite3.Error, OSError) as error:
            log.error("a command cannot be recorded command_id=%s detail=%s", command.command_id, error)
            return False
        return True

    async def _take_new(self, command: command_pb2.Command) -> None:
        body = command.WhichOneof("body")
        log.info(
            "command command_id=%s job_id=%s attempt=%s body=%s",
            command.command_id,
            command.job_id,
            command.attempt,
            body,
        )
        try:
            match body:
                case "run":
                    await self._run(command)
                case "cancel":
                    await self._cancel(command)
                case None:
                    raise CommandUnsupported(what="this command")
        except (AgentError, EngineError) as error:
            await self._reject(command, error)

    async def _run(self, command: command_pb2.Command) -> None:
        journal = self._host.journal
        if await journal.find(command.job_id, command.attempt) is not None:
            log.warning("this attempt is known under another command command_id=%s", command.command_id)
            await journal.remember(command.command_id, command.job_id, command.attempt)
            return
        if not command.HasField("deadline"):
            command.deadline.FromSeconds(int(DEADLINE_SECONDS))
        record = convert.to_record(command, uptime=self._host.clock.uptime(), boot_id=self._host.boot_id)
        if self._supervisor.full:
            raise CommandLate(seconds=record.deadline_seconds, detail="too much waits on this hypervisor already")
        folder = Folder(self._host.config.operations_folder / record.folder_name)
        specification = convert.to_spec(command, self._host.config, self._host.name, folder.control)
        await asyncio.to_thread(folder.create, spec.dump(specification))
        try:
            operation = await journal.take_run(record)
        except Exception:  # not for a cancellation: then the journal may have it, and needs the folder
            folder.remove()
            raise
        await self._supervisor.submit(operation, specification)

    async def _cancel(self, command: command_pb2.Command) -> None:
        grace_seconds = convert.grace_of(command.cancel)
        operation = await self._host.journal.take_cancel(
            command.command_id, command.job_id, command.attempt, grace_seconds
        )
        if operation is not None:
            await self._supervisor.cancel(operation, grace_seconds)

    async def _revoke_ticket(self, command: command_pb2.Command) -> bool:
        """Take back the ticket that a job has left; False as long as the job might still leave one. Raises OSError."""
        if not is_id(command.job_id):
            log.error("a ticket without an id cannot be revoked job_id=%s", command.job_id)
            return False
        if any(
            one.job_id == command.job_id and one.state != "finished" for one in await self._host.journal.operations()
        ):
            return False  # it comes again; the controller has asked for the job's end, or waits for it
        file = self._host.config.tickets_folder / f"{command.job_id}{SUFFIX}"
        await asyncio.to_thread(revoke, file, self._host.clock.now())
        return True

    async def _reject(self, command: command_pb2.Command, error: BackupManagerError) -> None:
        log.warning("rejected job_id=%s reason=%s detail=%s", command.job_id, error.reason, error)
        message = event_pb2.Event(
            job_id=command.job_id,
            attempt=command.attempt,
            generation=command.generation,
            epoch=command.epoch,
            time=convert_results.stamp(self._host.clock.now()),
        )
        body = convert_results.rejected(message, error)
        await self._host.journal.reject(command.command_id, command.job_id, command.attempt, body)
