"""One operation from its start, or its adoption, to its reported end.

    start / adopt ──► follow: read lines, poll, until the process is reaped ──► read once more ──► heal if it died badly,
          ▲             │                                                                 │        which may find its work done
          └─────────────┼── a backup's engine was killed: another goes on with it ◄───────┘
                        │ progress, log ──► Feed      record ──► journal      commit ──► lease? ──► control.jsonl
                        └ cancel: a word, SIGTERM, SIGKILL                          ──► `finished` in the journal ──► clear

Nothing here is lost with the agent: a new one finds the process by its folder, reads on from the offset in the journal, and
takes a `finished` line as the only proof of an end that the engine knew of.
"""

import asyncio
import dataclasses
import json
import logging
import re
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from agent import convert_results
from agent.convert import time_of
from agent.folder import Folder
from agent.heal import Healed, HealFailed, heal, needs_heal
from agent.host import Host, Leases
from agent.process import Process
from agent.records import Operation
from agent.scrub import Scrubber, secrets_of
from agent.shares import Grant
from agent.telemetry import Progress, make_line
from engine import spec
from engine.errors import Cancelled, EngineCrashed, InvalidSpec
from engine.results import BackupRecord
from engine.spec import from_json

if TYPE_CHECKING:
    from clients.gen.backupmanager.agent.v1 import event_pb2

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SAVE_SECONDS = 5.0  # how much of an engine's words a new agent may read a second time
LINGER_SECONDS = 60.0  # from `finished` to the process's end
RETRY_SECONDS = 5.0
HEAL_RETRY_SECONDS_MAX = 60.0
STDERR_LINES = 10
RESTARTS_MAX = 2  # of one operation's engine; what kills three of them would kill a fourth
_EXCEPTION_LINE = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning))\b")
T = TypeVar("T")


class Runner:
    """Runs one operation. `clear` is set when its process is reaped and nothing of it is left to tidy up."""

    def __init__(self, host: Host, leases: Leases, operation: Operation, specification: spec.Operation | None) -> None:
        """`specification` is None when an earlier agent started the process: then its secrets are not known here."""
        self.operation = operation
        self.folder = Folder(host.config.operations_folder / operation.folder_name)
        self.cancel_asked = asyncio.Event()
        self.settled = asyncio.Event()  # the process was found or started, or its remains were looked after once
        self.clear = asyncio.Event()
        self.granted: Grant | None = None
        self.process: Process | None = None
        self._host = host
        self._leases = leases
        self._specification = specification
        self._storage = specification.storage if specification else None
        self._scrubber = Scrubber(secrets_of(specification)) if specification else None
        self._offset = operation.offset
        self._log_count = operation.log_count
        self._saved_uptime = host.clock.uptime()
        self._records: list[event_pb2.BackupRecord] = []
        self._finished: dict[str, Any] | None = None
        self._killed = False
        self._commit_asked = False
        self._restarts = 0
        if operation.cancelled:
            self.cancel_asked.set()

    # ---- from outside --------------------------------------------------------------------------------------------------

    def cancel(self, operation: Operation) -> None:
        """The journal says that it is to end."""
        self.operation = operation
        self.cancel_asked.set()

    def grant(self, grant: Grant) -> None:
        """Tell the engine its share, if that has changed."""
        if grant != self.granted:
            self.granted = grant
            self._tell(
                {
                    "type": "grant",
                    "workers": grant.workers,
                    "read_limit": grant.read_limit,
                    "upload_limit": grant.upload_limit,
                }
            )

    async def run(self) -> None:
        """Start or adopt the process and see it to its end."""
        failed_start = ""
        try:
            self.process = self._find_or_start()
        except OSError as error:
            failed_start = f"it could not be started: {error.strerror}"
        while self.process is not None:
            self.settled.set()
            await self._attend(self.process)
            await self._take_rest()
            if not await self._start_another():
                break
        await self._take_rest()
        self.folder.drop_spec()
        await self._report(failed_start)

    async def heal_until_clear(self) -> None:
        """Tidy up what could not be tidied up so far, however often it takes."""
        seconds = 1.0
        while True:
            try:
                # Without the storage: what lies there may wait for the orphan rule, the server may not.
                await heal(self._host.config, self.operation, None, self._scrubber)
                break
            except HealFailed as error:
                log.warning("still untidy job_id=%s detail=%s", self.operation.job_id, error)
            self.settled.set()
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, HEAL_RETRY_SECONDS_MAX)
        over = await self._persisted(lambda: self._host.journal.healed(self.operation))
        for operation in over:
            Folder(self._host.config.operations_folder / operation.folder_name).remove()
        self.settled.set()
        self.clear.set()

    @property
    def scrubber(self) -> Scrubber | None:
        """What takes the operation's secrets out of texts; None when they are not known here."""
        return self._scrubber

    def release(self) -> None:
        """The agent stops; the engine goes on."""
        if self.process is not None:
            self.process.release()

    # ---- the process ---------------------------------------------------------------------------------------------------

    def _find_or_start(self) -> Process | None:
        """Return the engine's process; None when it has ended already. Raises OSError when it cannot be started."""
        process = self.folder.find_process()
        if process is not None:
            self.folder.drop_spec()
            log.info("adopted an engine job_id=%s pid=%s", self.operation.job_id, process.pid)
            return process
        startable = self.operation.boot_id == self._host.boot_id and not self.operation.cancelled
        if not startable or self.folder.begun() or not self.folder.spec.exists():
            return None
        process = self.folder.start(self._host.config.engine_command)
        log.info("started an engine job_id=%s verb=%s pid=%s", self.operation.job_id, self.operation.verb, process.pid)
        return process

    async def _start_another(self) -> bool:
        """If the engine of a backup was killed, not by us, start another one on the same job; tell whether one runs.

        Only before the commit was asked for, since from then on the storage tells the end; only where we know the secrets,
        which lie on no disk; and after a signal alone: a program that ends by itself would do so again.
        """
        status = self.process.exit_status if self.process is not None else None
        if self._specification is None or status is None or status >= 0 or not self._may_start_another():
            return False
        try:
            found = await heal(self._host.config, self.operation, self._storage, self._scrubber, resume=True)
        except HealFailed as error:
            log.warning("could not tidy up for another engine job_id=%s detail=%s", self.operation.job_id, error)
            return False
        if found.record is not None or not self._may_start_another():  # a cancel may have come meanwhile
            return False
        self._restarts += 1
        what = "goes on with it" if found.resumable else "begins anew"
        self._note(
            f"the engine died ({self._last_words()}); another one {what}, restart {self._restarts} of {RESTARTS_MAX}"
        )
        jobs = tuple(dataclasses.replace(job, restarts=self._restarts) for job in self._specification.jobs)
        text = spec.dump(dataclasses.replace(self._specification, jobs=jobs))
        try:
            self.process = self.folder.restart(text, self._host.config.engine_command)
        except OSError as error:
            log.error("another engine could not be started job_id=%s detail=%s", self.operation.job_id, error.strerror)
            return False
        log.info("started another engine job_id=%s pid=%s", self.operation.job_id, self.process.pid)
        return True

    def _may_start_another(self) -> bool:
        asked_to_end = self._killed or self.cancel_asked.is_set() or self.operation.cancelled
        ended = self._finished is not None or self._commit_asked
        return self.operation.verb == "backup" and not asked_to_end and not ended and self._restarts < RESTARTS_MAX

    def _note(self, message: str) -> None:
        """Put a warning of our own among the engine's log lines."""
        log.warning("%s job_id=%s", message, self.operation.job_id)
        self._log_count += 1
        line = make_line(self.operation.key, self._log_count, self._host.clock.now(), "warning", message)
        self._host.feed.log(line)

    async def _attend(self, process: Process) -> None:
        """Follow the process to its end, and end it if that is asked for."""
        stopper = asyncio.create_task(self._stop_when_asked(process))
        lingerer: asyncio.Task[None] | None = None
        try:
            while not process.ended:
                if not await self._take_lines():
                    await process.wait(POLL_SECONDS)
                if self._finished is not None and lingerer is None:
                    lingerer = asyncio.create_task(self._stop_lingering(process))
        finally:
            await _end_tasks(stopper, lingerer)

    async def _stop_when_asked(self, process: Process) -> None:
        await self.cancel_asked.wait()
        log.info("cancelling job_id=%s", self.operation.job_id)
        self._tell({"type": "cancel", "job_id": self.operation.job_id})
        if not await process.wait(self._host.config.cancel_word_seconds):
            await self._stop_by_force(process)

    async def _stop_lingering(self, process: Process) -> None:
        if not await process.wait(LINGER_SECONDS):
            log.warning("an engine does not end after its last word job_id=%s", self.operation.job_id)
            await self._stop_by_force(process)

    async def _stop_by_force(self, process: Process) -> None:
        """SIGTERM, then SIGKILL; to this process alone, for a child of it may be what thaws the guest."""
        process.send(signal.SIGTERM)
        if not await process.wait(self.operation.grace_seconds):
            log.warning("killing an engine job_id=%s pid=%s", self.operation.job_id, process.pid)
            self._killed = True
            process.send(signal.SIGKILL)

    def _tell(self, line: dict[str, Any]) -> None:
        try:
            self.folder.tell(line)
        except OSError as error:  # an engine that hears nothing is ended by signals, and commits only by its own rule
            log.error("cannot speak to an engine job_id=%s detail=%s", self.operation.job_id, error)

    # ---- its words -----------------------------------------------------------------------------------------------------

    async def _take_rest(self) -> None:
        """Read what is left after the end; a line without its end was never finished and does not count."""
        while await self._take_lines():
            pass

    async def _take_lines(self) -> bool:
        """Deal with the next lines; tell whether there were any. Lets others run in between."""
        lines = self.folder.read_lines(self._offset)
        for line, end in lines:
            data = self._parsed(line)
            if data.get("type") in {"finished", "refused"}:
                await self._store_records()  # before the offset stops moving on: see _save
                self._finished = self._finished or ({"state": "failed"} | data)
            else:
                await self._take_line(data)
            self._offset = end
        await self._store_records()
        if lines and self._host.clock.uptime() - self._saved_uptime > SAVE_SECONDS:
            await self._save()
        await asyncio.sleep(0)
        return bool(lines)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        """Return a line as an object without secrets; an empty one for what is none, or another job's."""
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict) or data.get("job_id", self.operation.job_id) != self.operation.job_id:
            log.warning("passed over a line of an engine job_id=%s bytes=%s", self.operation.job_id, len(line))
            return {}
        clean: dict[str, Any] = self._scrubber.json(data) if self._scrubber else data
        return clean

    async def _take_line(self, data: dict[str, Any]) -> None:
        operation, now = self.operation, self._host.clock.now()
        match data.get("type"):
            case "stage" | "progress":
                progress = Progress(
                    *operation.key,
                    now,
                    str(data.get("stage", "")),
                    _number(data, "bytes_done"),
                    _number(data, "bytes_total"),
                    _number(data, "bytes_stored"),
                )
                self._host.feed.progress(progress, self._host.clock.uptime())
            case "log":
                self._log_count += 1
                level, message = str(data.get("level", "info")), str(data.get("message", ""))
                self._host.feed.log(make_line(operation.key, self._log_count, _time(data, now), level, message))
            case "record" if self._finished is None:
                self._take_record(data.get("record"))
            case "commit":
                self._commit_asked = True
                await self._answer_commit()

    def _take_record(self, data: Any) -> None:
        try:
            self._records.append(convert_results.found_record(data, self.operation.storage_id))
        except InvalidSpec as error:
            # Raising would end the reindex of everything else; `backup_count` of its result shows the difference.
            log.error("a record of a reindex cannot be read job_id=%s detail=%s", self.operation.job_id, error)

    async def _answer_commit(self) -> None:
        """Say whether the backup may be committed: the controller decides, and while it is away, our own journal."""
        held = await self._leases.check_lease(self.operation)
        allow = held is not False and not self.operation.cancelled
        log.info("commit job_id=%s asked_controller=%s allow=%s", self.operation.job_id, held is not None, allow)
        self._tell({"type": "commit", "job_id": self.operation.job_id, "allow": allow})

    async def _store_records(self) -> None:
        if not self._records:
            return
        bodies = convert_results.record_batches(self.operation, self._host.clock.now(), self._records)
        self._records = []
        while await self._persisted(self._host.journal.records_wait):  # noqa: ASYNC110 - a state of the file, not an event
            await asyncio.sleep(RETRY_SECONDS)
        self.operation = await self._persisted(
            lambda: self._host.journal.add_records(self.operation, bodies, self._offset, self._log_count)
        )
        self._saved_uptime = self._host.clock.uptime()

    async def _save(self) -> None:
        """Remember how far we have read; never beyond `finished`, which only the journal's own state replaces."""
        if self._finished is None:
            self.operation = await self._persisted(
                lambda: self._host.journal.advance(self.operation, self._offset, self._log_count)
            )
            self._saved_uptime = self._host.clock.uptime()

    # ---- its end -------------------------------------------------------------------------------------------------------

    async def _report(self, failed_start: str) -> None:
        healed, remains = await self._heal_once() if self._left_untidy() else (True, Healed([]))
        self.settled.set()
        body = self._end(failed_start, remains)
        self.operation = await self._persisted(
            lambda: self._host.journal.finish(self.operation, body, unhealed=not healed)
        )
        self._host.feed.forget(self.operation.key)
        if healed:
            self.clear.set()
        else:
            await self.heal_until_clear()

    def _left_untidy(self) -> bool:
        """Tell whether the end may have left something: an engine that fails tidies up, but not what another one left."""
        if self._finished is None or self._killed:
            return True
        return self._restarts > 0 and not str(self._finished.get("state", "")).startswith("completed")

    async def _heal_once(self) -> tuple[bool, Healed]:
        """Tidy up; return whether nothing is left to be done, and what was found."""
        if not needs_heal(self.operation):
            return True, Healed([])
        try:
            return True, await heal(self._host.config, self.operation, self._storage, self._scrubber)
        except HealFailed as error:
            log.warning("could not tidy up job_id=%s detail=%s", self.operation.job_id, error)
            return False, Healed([f"{error}; it is tried again until it succeeds"])

    def _end(self, failed_start: str, remains: Healed) -> bytes:
        """Return the event's body: what the engine said, or else what the storage says, or else what silence means."""
        now, operation = self._host.clock.now(), self.operation
        detail = failed_start or self._last_words()
        if self._finished is not None:
            try:
                body = convert_results.finished(operation, now, self._finished, remains.done)
                log.info("an engine finished job_id=%s state=%s", operation.job_id, self._finished.get("state"))
                return body
            except InvalidSpec as error:
                detail = f"its result cannot be read: {error}"
        if remains.record is not None:
            try:
                body = self._end_after_commit(detail, remains.record, remains.done)
                log.warning("an engine died after its commit job_id=%s detail=%s", operation.job_id, detail)
                return body
            except InvalidSpec as error:
                log.error("a backup's record cannot be used job_id=%s detail=%s", operation.job_id, error)
        if operation.cancelled:
            log.info("an engine was ended by force job_id=%s", operation.job_id)
            return convert_results.ended_badly(operation, now, "cancelled", Cancelled(), remains.done)
        log.error("an engine crashed job_id=%s detail=%s", operation.job_id, detail)
        return convert_results.ended_badly(operation, now, "failed", EngineCrashed(detail=detail), remains.done)

    def _end_after_commit(self, detail: str, record: dict[str, Any], warnings: list[str]) -> bytes:
        """Return the body of an end that the storage proves: the backup is there, whole. Raises InvalidSpec."""
        operation = self.operation
        clean = self._scrubber.json(record) if self._scrubber else record
        found = from_json(BackupRecord, clean, "record")
        theirs = (found.job_id, found.server_id, found.backup.backup_id)
        if theirs != (operation.job_id, operation.server_id, operation.backup_id) or found.unreadable_disks:
            raise InvalidSpec(field="record", problem="is not of this job's backup")
        late = f"the engine died after the backup was committed ({detail}); the storage has it whole"
        line = {"state": "completed_with_warnings", "warnings": [late], "result": asdict(found.backup)}
        return convert_results.finished(operation, self._host.clock.now(), line, warnings)

    def _last_words(self) -> str:
        """Return how the process ended and the last it said on stderr. Removes the file.

        Of an engine that an earlier agent started the secrets are not known any more, so that nobody could take them out:
        of its words only the names of exceptions are told.
        """
        status = self.process.exit_status if self.process else None
        lines = self.folder.take_stderr()
        if status is None:
            ending = "it was gone"
        else:
            ending = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        if self._scrubber is None:
            names = [found.group(1) for line in lines if (found := _EXCEPTION_LINE.match(line))]
            words = names[-1:]
        else:
            words = self._scrubber.text("\n".join(lines)).splitlines()[-STDERR_LINES:]
        return convert_results.cut(": ".join([ending, " | ".join(words)] if words else [ending]), 2000)

    async def _persisted(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write to the journal, and try again while the disk is full or fails: what it is about lies in the folder."""
        while True:
            try:
                return await write()
            except sqlite3.Error as error:
                log.error("cannot write the journal job_id=%s detail=%s", self.operation.job_id, error)
                await asyncio.sleep(RETRY_SECONDS)


async def _end_tasks(*tasks: asyncio.Task[None] | None) -> None:
    going: list[Coroutine[Any, Any, None] | asyncio.Task[None]] = []
    for task in tasks:
        if task is not None:
            task.cancel()
            going.append(task)
    await asyncio.gather(*going, return_exceptions=True)


def _number(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _time(data: dict[str, Any], now: datetime) -> datetime:
    try:
        return time_of(str(data["time"]))
    except (KeyError, ValueError):
        return now
