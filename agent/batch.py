"""A batch on this hypervisor: its jobs in one engine process, and in another one what a dead process had not begun.

    members ──gather──► process: one spec with all of them ──► lines ──by job_id──► member ──► its own events and end
       ▲                    │
       └── not begun ◄──────┘ it died: who was at work fails, the others go into the next process

A member (`Member`) is an operation as any other, with its own events, lease, cancel and result; only its process is shared.
"started" is its acceptance. What comes too late for a process (a command that was sent again) gets the next one.
"""

import asyncio
import dataclasses
import json
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

from agent import convert_results
from agent.folder import Folder
from agent.host import Host, Leases
from agent.operation import POLL_SECONDS, RESTARTS_MAX, SAVE_SECONDS, Runner
from agent.process import Process
from agent.records import Operation
from agent.shares import Grant
from engine import spec
from engine.ids import new_id

log = logging.getLogger(__name__)

GATHER_SECONDS = 1.0  # without a further job, the process begins with those that are there
LINGER_SECONDS = 60.0


class Member(Runner):
    """One job of a batch. `entered` is set while a process has it, `over` once its last word is heard or its process ended."""

    def __init__(self, host: Host, leases: Leases, operation: Operation, specification: spec.Operation | None) -> None:
        super().__init__(host, leases, operation, specification)
        self.entered = asyncio.Event()
        self.over = asyncio.Event()
        self.reported = asyncio.Event()
        self.batch: Batch | None = None
        self.words = "it was gone"
        self._commits: set[asyncio.Task[None]] = set()

    @property
    def specification(self) -> spec.Operation | None:
        """What the engine is to get; None when an earlier agent started its process."""
        return self._specification

    @property
    def begun(self) -> bool:
        return self.operation.state == "running"

    @property
    def may_go_on(self) -> bool:
        """Tell whether another process may take it up."""
        asked_to_end = self.cancel_asked.is_set() or self.operation.cancelled
        return not self.begun and self._specification is not None and not asked_to_end

    def enter(self, batch: "Batch", folder: Folder, operation: Operation, process: Process | None) -> None:
        """A process has it from now on."""
        self.batch, self.folder, self.operation, self.process = batch, folder, operation, process
        self._offset = operation.offset
        self.entered.set()

    def put_back(self) -> None:
        """The process ended before its turn."""
        self.process = None
        self.entered.clear()
        self.over.set()

    def lose(self, words: str, *, killed: bool) -> None:
        """The process ended without its result."""
        self.words = words
        self._killed = self._killed or killed
        self.over.set()

    async def attend(self) -> bool:
        """Return when the process is done with it; False when it goes into another one."""
        stopper = asyncio.create_task(self._stop_in_process())
        try:
            await self.over.wait()
        finally:
            stopper.cancel()
            await asyncio.gather(stopper, *self._commits, return_exceptions=True)
        if self.entered.is_set():
            return True
        self.over.clear()
        return False

    async def report(self) -> None:
        """Tell the journal how it ended, and tidy up what it left."""
        try:
            await self._report("")
        finally:
            self.reported.set()

    async def hear(self, data: dict[str, Any], end: int) -> None:
        """Take in one line of the process that is about it; `end` is the offset behind it. Lines heard before are passed over."""
        if end <= self._offset or self.over.is_set():
            return
        clean: dict[str, Any] = self._scrubber.json(data) if self._scrubber else data
        match clean.get("type"):
            case "started":
                await self._accept()
            case "finished" | "refused":
                self._finished = {"state": "failed"} | clean
                self.over.set()
            case "commit":
                self._commit_asked = True
                task = asyncio.create_task(self._answer_commit())
                self._commits.add(task)
                task.add_done_callback(self._commits.discard)
            case _:
                await self._take_line(clean)
        self._offset = end
        if self.begun and self._host.clock.uptime() - self._saved_uptime > SAVE_SECONDS:
            await self._save()

    async def _accept(self) -> None:
        if self.operation.state == "waiting":
            body = convert_results.accepted(self.operation, self._host.clock.now())
            self.operation = await self._persisted(lambda: self._host.journal.accept(self.operation, body))

    async def _stop_in_process(self) -> None:
        """Cancel by word; one that does not obey takes its process along."""
        await self.cancel_asked.wait()
        log.info("cancelling a job of a batch job_id=%s", self.operation.job_id)
        self._tell({"type": "cancel", "job_id": self.operation.job_id})
        await asyncio.sleep(self._host.config.cancel_word_seconds)
        if self.batch is not None:
            await self.batch.stop_by_force(self.operation.grace_seconds)

    def _last_words(self) -> str:
        return self.words


class Batch:
    """The processes of one batch, one after another. Belongs to the event loop."""

    def __init__(self, host: Host, batch_id: str, changed: Callable[[str], None]) -> None:
        """`changed` is called with the storage's id when a process of it began or ended: shares are divided anew."""
        self.batch_id = batch_id
        self.storage_id = ""
        self.process: Process | None = None
        self.granted: Grant | None = None
        self.newest: Operation | None = None
        self._host = host
        self._changed = changed
        self._waiting: list[Member] = []
        self._inside: dict[str, Member] = {}
        self._folder: Folder | None = None
        self._offset = 0
        self._arrived = asyncio.Event()
        self._moved = asyncio.Event()
        self._held = False
        self._holds = 0
        self._served = 0
        self._barren = 0  # processes in a row that died without having begun anything
        self._task: asyncio.Task[None] | None = None
        self._tidying: set[asyncio.Task[None]] = set()

    # ---- from outside --------------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """Let a member into the next process."""
        self._waiting.append(member)
        self._arrived.set()
        self._ensure()

    def leave(self, member: Member) -> None:
        """Let a member that waits for a process go."""
        if member in self._waiting:
            self._waiting.remove(member)
            self._arrived.set()

    def adopt(self, name: str, members: Sequence[Member]) -> None:
        """Take up a process that an earlier agent started for these members, or was about to."""
        folder = Folder(self._host.config.operations_folder / name)
        for member in members:
            member.enter(self, folder, member.operation, None)
        self._ensure(self._adopt(folder, list(members)))

    @property
    def working(self) -> bool:
        return self.process is not None and not self.process.ended

    def grant(self, grant: Grant) -> None:
        """Tell the process its share, if that has changed."""
        if grant != self.granted:
            self.granted = grant
            self._tell({"type": "grant", **dataclasses.asdict(grant)})

    async def hold(self) -> None:
        """Let no further job begin, and return when none is at work."""
        self._holds += 1
        if self._holds == 1:
            self._held = False
            self._tell({"type": "hold", "hold": True})
        while self.working and not (
            self._held and not any(one.begun and not one.over.is_set() for one in self._members())
        ):
            self._moved.clear()
            await self._moved.wait()

    def go_on(self) -> None:
        """Let jobs begin again."""
        self._holds -= 1
        if self._holds == 0:
            self._tell({"type": "hold", "hold": False})
            self._arrived.set()

    async def stop_by_force(self, grace_seconds: float) -> None:
        """End the process: by SIGTERM if nobody in it is to go on, and by SIGKILL after the grace."""
        process = self.process
        if process is None:
            return
        if all(one.cancel_asked.is_set() for one in self._members() if not one.over.is_set()):
            process.send(signal.SIGTERM)
        if not await process.wait(grace_seconds):
            log.warning("killing the engine of a batch batch_id=%s pid=%s", self.batch_id, process.pid)
            process.send(signal.SIGKILL)

    async def stop(self) -> None:
        """The agent stops; the process goes on."""
        tasks = [one for one in (self._task, *self._tidying) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.process is not None:
            self.process.release()

    # ---- its processes -------------------------------------------------------------------------------------------------

    def _ensure(self, first: Any = None) -> None:
        if first is not None or self._task is None or self._task.done():
            before = self._task
            self._task = asyncio.create_task(self._run(first, before))

    async def _run(self, first: Any, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        if first is not None:
            await first
        while self._waiting:
            await self._gather()
            members = sorted(self._waiting, key=lambda one: one.operation.position)
            self._waiting = []
            if members:
                await self._serve(members)

    async def _gather(self) -> None:
        """Wait until all that came together are there, or nobody more comes, and nothing holds the batch."""
        expected = self._waiting[0].operation.job_count if not self._served else 0
        while self._waiting and (self._holds or len(self._waiting) < expected or not expected):
            self._arrived.clear()
            try:
                async with asyncio.timeout(None if self._holds else GATHER_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _serve(self, members: list[Member]) -> None:
        """Start a process for these members and see it to its end."""
        self._served += 1
        name = new_id(self._host.clock.now())
        folder = Folder(self._host.config.operations_folder / name)
        folder.create(spec.dump(self._specification(members, folder)))
        operations = await self._host.journal.assign([one.operation for one in members], name)
        for member, operation in zip(members, operations, strict=True):
            member.enter(self, folder, operation, None)
            Folder(self._host.config.operations_folder / operation.folder_name).remove()
        if self._holds:
            folder.tell({"type": "hold", "hold": True})
        try:
            process = folder.start(self._host.config.engine_command)
        except OSError as error:
            for member in members:
                member.lose(f"it could not be started: {error.strerror}", killed=False)
            return
        log.info("started an engine batch_id=%s jobs=%d pid=%s", self.batch_id, len(members), process.pid)
        await self._follow(folder, process, members)

    async def _adopt(self, folder: Folder, members: list[Member]) -> None:
        process = folder.find_process()
        if process is None and folder.spec.exists() and not folder.begun():
            process = folder.start(self._host.config.engine_command)
        folder.drop_spec()
        if process is not None:
            log.info("adopted the engine of a batch batch_id=%s pid=%s", self.batch_id, process.pid)
        await self._follow(folder, process, members)

    async def _follow(self, folder: Folder, process: Process | None, members: list[Member]) -> None:
        """Hand out the process's words until it has ended; then settle who has heard none of an end."""
        self._folder, self.process, self.granted = folder, process, None
        self._inside = {one.operation.job_id: one for one in members}
        self._offset = min(one.operation.offset for one in members)
        self.newest = members[-1].operation
        self.storage_id = self.newest.storage_id
        for member in members:
            member.process = process
            member.settled.set()
        self._changed(self.storage_id)
        if self._holds:
            self._tell({"type": "hold", "hold": True})
        if process is not None:
            await self._attend(process)
        while await self._take_lines():
            pass
        self._settle(folder, process, members)

    async def _attend(self, process: Process) -> None:
        last_word: float | None = None
        while not process.ended:
            if not await self._take_lines():
                await process.wait(POLL_SECONDS)
            if all(one.over.is_set() for one in self._members()):
                uptime = self._host.clock.uptime()
                last_word = last_word or uptime
                if uptime - last_word > LINGER_SECONDS:
                    log.warning("an engine does not end after its last word batch_id=%s", self.batch_id)
                    process.send(signal.SIGKILL)

    def _settle(self, folder: Folder, process: Process | None, members: list[Member]) -> None:
        words, killed = _ending(folder, process, members), process is not None and (process.exit_status or 0) < 0
        fruitless = not any(one.begun or one.over.is_set() for one in members)
        self._barren = self._barren + 1 if fruitless else 0
        for member in members:
            if member.over.is_set():
                continue
            if member.may_go_on and self._barren <= RESTARTS_MAX:
                log.warning("goes into another process job_id=%s batch_id=%s", member.operation.job_id, self.batch_id)
                member.put_back()
            else:
                member.lose(words, killed=killed)
        self.process, self._inside = None, {}
        self._moved.set()
        self._changed(self.storage_id)
        task = asyncio.create_task(_remove_later(folder, members))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    def _specification(self, members: list[Member], folder: Folder) -> spec.Operation:
        """Return one operation with the jobs of all members. Secrets and all: it exists as a file until the engine has read it."""
        found = [one.specification for one in members]
        newest = members[-1].operation
        jobs = []
        for member, one in zip(members, found, strict=True):
            assert one is not None  # who waits for a process came with it
            until = member.operation.receive_uptime + member.operation.deadline_seconds
            jobs += [dataclasses.replace(job, begin_uptime_max=until) for job in one.jobs]
        first = found[0]
        assert first is not None
        return dataclasses.replace(
            first, jobs=tuple(jobs), concurrency=newest.concurrency, control_file=str(folder.control)
        )

    # ---- words ---------------------------------------------------------------------------------------------------------

    async def _take_lines(self) -> bool:
        """Hand out the next lines; tell whether there were any."""
        if self._folder is None:
            return False
        lines = self._folder.read_lines(self._offset)
        for line, end in lines:
            await self._hand_out(line, end)
            self._offset = end
        if lines:
            self._moved.set()
        await asyncio.sleep(0)
        return bool(lines)

    async def _hand_out(self, line: bytes, end: int) -> None:
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            log.warning("passed over a line of an engine batch_id=%s bytes=%s", self.batch_id, len(line))
        elif data.get("type") == "held":
            self._held = True
        elif data.get("type") == "refused":
            for member in self._members():
                await member.hear(data, end)
        elif (found := self._inside.get(str(data.get("job_id", "")))) is not None:
            await found.hear(data, end)

    def _members(self) -> list[Member]:
        return list(self._inside.values())

    def _tell(self, line: dict[str, Any]) -> None:
        if self._folder is None or self.process is None:
            return
        try:
            self._folder.tell(line)
        except OSError as error:
            log.error("cannot speak to an engine batch_id=%s detail=%s", self.batch_id, error.strerror)


def _ending(folder: Folder, process: Process | None, members: list[Member]) -> str:
    """Return how a process ended and the last it said on stderr, with no secret of any member."""
    words = "it was gone"
    status = process.exit_status if process is not None else None
    if status is not None:
        words = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
    lines = folder.take_stderr()
    scrubbers = [one.scrubber for one in members]
    if not lines or any(one is None for one in scrubbers):
        return words
    text = " | ".join(lines[-10:])
    for scrubber in scrubbers:
        if scrubber is not None:
            text = scrubber.text(text)
    return convert_results.cut(f"{words}: {text}", 2000)


async def _remove_later(folder: Folder, members: list[Member]) -> None:
    """Remove a process's folder once nobody needs its words any more, not even after a crash of ours."""
    await asyncio.gather(*(one.reported.wait() for one in members if one.entered.is_set()))
    folder.remove()
