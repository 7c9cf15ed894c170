"""All operations of this hypervisor: who may begin, who shares what with whom, who is to end.

    submit ──► turn: whoever works on the same server first, until its process is reaped and its traces are tidied up (N15)
               │  its deadline passes ──► rejected          cancelled meanwhile ──► finished as cancelled
               └► accepted ──► Runner ──► reported ──► clear

When an operation on a storage begins or ends, the others there get their new share of the storage's budget (P1).
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from agent import convert_results, shares
from agent.batch import Batch, Member
from agent.errors import CommandLate
from agent.folder import Folder
from agent.host import Host, Leases
from agent.operation import Runner
from agent.process import Process
from agent.records import Operation
from engine import spec
from engine.errors import BackupManagerError, Cancelled, EngineError, WindowClosed

log = logging.getLogger(__name__)

WAITING_MAX = 500
RECOVER_SECONDS = 15.0  # how long the first connection may wait for traces of dead engines to be tidied up
STRANGER_GRACE_SECONDS = 60.0
RETRY_SECONDS = 5.0


class Supervisor:
    """Belongs to the event loop. `recover` first, `stop` last."""

    def __init__(self, host: Host, leases: Leases) -> None:
        self._host = host
        self._leases = leases
        self._runners: dict[tuple[str, int], Runner] = {}  # in the order of their commands
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Take up what an earlier agent left: adopt what runs, report what ended, tidy up what died.

        Returns when all of it was looked after once, or after RECOVER_SECONDS; what is not done goes on.
        """
        operations = await self._host.journal.operations()
        processes = {operation.process for operation in operations if operation.state != "finished"} - {""}
        self._drop_strangers({operation.folder_name for operation in operations} | processes)
        for operation in operations:
            await self._recover(operation)
        for name in sorted(processes):
            found = [one for one in self._runners.values() if isinstance(one, Member) and one.operation.process == name]
            if found:
                self._batch(found[0].operation.batch_id).adopt(name, found)
        waits = [runner.settled.wait() for runner in self._runners.values() if runner.operation.state != "waiting"]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waits), RECOVER_SECONDS)

    async def stop(self) -> None:
        """Let go of everything. The engines go on, and the next agent adopts them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch in self._batches.values():
            await batch.stop()
        for runner in self._runners.values():
            if not isinstance(runner, Member):
                runner.release()

    # ---- what the controller wants -------------------------------------------------------------------------------------

    async def submit(self, operation: Operation, specification: spec.Operation) -> None:
        """Do an operation that the journal holds as waiting, when its turn comes."""
        for (job_id, _), runner in list(self._runners.items()):
            if job_id == operation.job_id and not runner.clear.is_set():
                await self.cancel(runner.operation, runner.operation.grace_seconds)  # an attempt that nobody counts on
        self._take_up(operation, specification)

    async def cancel(self, operation: Operation, grace_seconds: float) -> None:
        """End an operation. One that has ended is left alone."""
        runner = self._runners.get(operation.key)
        if runner is None or runner.operation.state == "finished":
            return
        runner.cancel(await self._host.journal.cancel(operation, grace_seconds))

    async def cancel_by_key(self, job_id: str, attempt: int, grace_seconds: float) -> None:
        """As `cancel`, for the words of a Welcome; what is not here needs no end."""
        runner = self._runners.get((job_id, attempt))
        if runner is not None:
            await self.cancel(runner.operation, grace_seconds)

    def forget(self, operations: list[Operation]) -> None:
        """These are over for good: the controller has their end."""
        for operation in operations:
            self._folder(operation).remove()

    @property
    def full(self) -> bool:
        return len(self._runners) >= WAITING_MAX

    # ---- one operation's way -------------------------------------------------------------------------------------------

    def _take_up(self, operation: Operation, specification: spec.Operation | None) -> None:
        rivals = [
            runner
            for runner in self._runners.values()
            if runner.operation.subjects & operation.subjects and not runner.clear.is_set()
        ]
        member = operation.batch_id and operation.state != "finished"
        kind = Member if member else Runner
        runner = kind(self._host, self._leases, operation, specification)
        self._runners[operation.key] = runner
        self._spawn(self._run(runner, rivals))

    async def _run(self, runner: Runner, rivals: list[Runner]) -> None:
        """See an operation to its end, whatever happens to us: a fault of ours begins anew from what the journal says."""
        try:
            await self._see_through(runner, rivals)
        except Exception:
            log.exception("the care for an operation failed, it begins anew job_id=%s", runner.operation.job_id)
            if not isinstance(runner, Member):
                runner.release()
            await asyncio.sleep(RETRY_SECONDS)
            operation = await self._host.journal.find(*runner.operation.key)
            del self._runners[runner.operation.key]  # only now, and replaced at once: it keeps others from the server
            if operation is not None:
                await self._recover(operation)
            await self._wait_for_successor(runner)
        else:
            del self._runners[runner.operation.key]
        self._drop_batch(runner.operation.batch_id)
        # Not before: whoever waits for this server must not begin beside a process that we lost sight of.
        runner.clear.set()
        runner.settled.set()
        self._share_budget(runner.operation.storage_id)

    async def _wait_for_successor(self, runner: Runner) -> None:
        """Wait until whoever took up a failed runner's operation is clear: the process may be the same one.

        One that waits for its turn has no process, and may wait for those who wait for `runner`.
        """
        successor = self._runners.get(runner.operation.key)
        if successor is not None and successor.operation.state != "waiting":
            await successor.clear.wait()

    async def _see_through(self, runner: Runner, rivals: list[Runner]) -> None:
        if isinstance(runner, Member):
            await self._see_member(runner, rivals)
        elif runner.operation.during_batch and runner.operation.state != "finished":
            await self._during_batch(runner, rivals)
        else:
            await self._see_single(runner, lambda: _all_clear(rivals))

    async def _see_single(self, runner: Runner, free: Callable[[], Coroutine[Any, Any, None]]) -> None:
        now = self._host.clock.now
        try:
            if runner.operation.state == "waiting":
                await self._wait_turn(runner, free())
                body = convert_results.accepted(runner.operation, now())
                runner.operation = await self._host.journal.accept(runner.operation, body)
        except Cancelled as error:
            runner.folder.drop_spec()
            body = convert_results.ended_badly(runner.operation, now(), "cancelled", error, ["It had not begun yet"])
            runner.operation = await self._host.journal.finish(runner.operation, body, unhealed=False)
        except CommandLate as error:
            await self._reject(runner.operation, error)
        else:
            if runner.operation.state == "running":
                self._share_budget(runner.operation.storage_id)
                await runner.run()
            else:
                await runner.heal_until_clear()

    async def _see_member(self, member: Member, rivals: list[Runner]) -> None:
        """See a job of a batch through its process, or one after the other, to its end."""
        batch = self._batch(member.operation.batch_id)
        try:
            while True:
                if member.operation.state == "waiting" and not member.entered.is_set() and not member.operation.process:
                    await self._wait_turn(member, self._enter(batch, member, rivals))
                if await member.attend():
                    break
                member.operation = (await self._host.journal.assign([member.operation], ""))[0]
        except Cancelled as error:
            member.folder.drop_spec()
            body = convert_results.ended_badly(
                member.operation, self._host.clock.now(), "cancelled", error, ["It had not begun yet"]
            )
            member.operation = await self._host.journal.finish(member.operation, body, unhealed=False)
        except CommandLate:
            await self._reject(member.operation, WindowClosed())
        else:
            await member.report()

    async def _enter(self, batch: Batch, member: Member, rivals: list[Runner]) -> None:
        """Return when a process has the member; when given up, it waits for none any more."""
        await _all_clear(rivals)
        batch.join(member)
        try:
            await member.entered.wait()
        finally:
            batch.leave(member)

    async def _during_batch(self, runner: Runner, rivals: list[Runner]) -> None:
        """Do a restore between two jobs of the batches at work (X2)."""
        batches = list(self._batches.values())
        holding = asyncio.gather(*(batch.hold() for batch in batches))

        async def free() -> None:
            await holding
            await _all_clear([one for one in rivals if not isinstance(one, Member) or one.begun])

        try:
            await self._see_single(runner, free)
        finally:
            holding.cancel()
            for batch in batches:
                batch.go_on()

    def _drop_batch(self, batch_id: str) -> None:
        """Forget a batch of which nobody is left here."""
        batch = self._batches.get(batch_id)
        if (
            batch is not None
            and not batch.working
            and all(one.operation.batch_id != batch_id for one in self._runners.values())
        ):
            del self._batches[batch_id]

    def _batch_changed(self, storage_id: str) -> None:
        """A process of a batch began or ended."""
        self._share_budget(storage_id)
        for batch_id in list(self._batches):
            self._drop_batch(batch_id)

    def _batch(self, batch_id: str) -> Batch:
        return self._batches.setdefault(batch_id, Batch(self._host, batch_id, self._batch_changed))

    async def _wait_turn(self, runner: Runner, turn: Coroutine[Any, Any, None]) -> None:
        """Return when `turn` does, which waits for whoever works on the same server. Raises Cancelled, CommandLate."""
        operation = runner.operation
        elapsed = self._host.clock.uptime() - operation.receive_uptime
        free = asyncio.create_task(turn)
        cancelled = asyncio.create_task(runner.cancel_asked.wait())
        tasks: set[asyncio.Task[Any]] = {free, cancelled}
        try:
            remaining = max(0.0, operation.deadline_seconds - elapsed)
            await asyncio.wait(tasks, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if isinstance(runner, Member) and runner.entered.is_set():
                return  # its process has it: that is told of the rest
            if runner.cancel_asked.is_set():
                raise Cancelled
            if not free.done():
                holder = self._holder(operation)
                raise CommandLate(
                    seconds=operation.deadline_seconds, detail=f"job {holder} still holds the server", job_id=holder
                )
            if elapsed > operation.deadline_seconds:
                raise CommandLate(seconds=operation.deadline_seconds, detail="no agent ran")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _holder(self, operation: Operation) -> str:
        """Return the job that an operation waits for, "" if it is none of the same server."""
        others = (
            one for one in self._runners.values() if one.operation.key != operation.key and not one.clear.is_set()
        )
        return next((one.operation.job_id for one in others if one.operation.subjects & operation.subjects), "")

    async def _reject(self, operation: Operation, error: BackupManagerError) -> None:
        log.warning("rejected job_id=%s reason=%s detail=%s", operation.job_id, error.reason, error)
        body = convert_results.rejected(convert_results.event(operation, self._host.clock.now()), error)
        await self._host.journal.reject(operation.command_id, operation.job_id, operation.attempt, body)
        self._folder(operation).remove()

    def _share_budget(self, storage_id: str) -> None:
        """Give everybody who works on a storage a share of the newest command's budget."""
        singles = [
            (runner, runner.operation)
            for runner in self._runners.values()
            if not isinstance(runner, Member)
            and runner.operation.storage_id == storage_id
            and runner.operation.state == "running"
            and not runner.clear.is_set()
        ]
        batched = [
            (batch, batch.newest)
            for batch in self._batches.values()
            if batch.newest is not None and batch.storage_id == storage_id and batch.working
        ]
        working: list[tuple[Runner | Batch, Operation]] = [*batched, *singles]
        if not working:
            return
        newest = working[-1][1]
        budget = shares.Budget(newest.workers, newest.read_limit, newest.upload_limit)
        grants = shares.split(budget, [operation.verb for _, operation in working])
        for (process, _), grant in zip(working, grants, strict=True):
            process.grant(grant)

    # ---- after a restart -----------------------------------------------------------------------------------------------

    async def _recover(self, operation: Operation) -> None:
        specification = self._read_spec(operation)
        if operation.state == "finished":
            if operation.unhealed:
                self._take_up(operation, None)
        elif operation.state == "running" or operation.process:
            self._take_up(operation, specification)
        elif specification is None or operation.boot_id != self._host.boot_id:
            error = CommandLate(seconds=operation.deadline_seconds, detail="this host was restarted meanwhile")
            await self._reject(operation, error)
        else:
            self._take_up(operation, specification)

    def _read_spec(self, operation: Operation) -> spec.Operation | None:
        text = self._folder(operation).read_spec()
        try:
            return spec.load(spec.Operation, text) if text is not None else None
        except EngineError:
            return None  # another version wrote it; whoever needs it says so

    def _drop_strangers(self, known: set[str]) -> None:
        """Remove folders that the journal does not know; an engine in one of them does what nobody will count."""
        if not self._host.config.operations_folder.is_dir():
            return
        for path in self._host.config.operations_folder.iterdir():
            if path.name in known:
                continue
            folder = Folder(path)
            process = folder.find_process()
            if process is None:
                folder.remove()
            else:
                log.warning("ending an engine that the journal does not know folder=%s pid=%s", path.name, process.pid)
                self._spawn(_end_stranger(folder, process))

    def _folder(self, operation: Operation) -> Folder:
        return Folder(self._host.config.operations_folder / operation.folder_name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _all_clear(rivals: list[Runner]) -> None:
    for rival in rivals:
        await rival.clear.wait()


async def _end_stranger(folder: Folder, process: Process) -> None:
    process.send(signal.SIGTERM)
    if not await process.wait(STRANGER_GRACE_SECONDS):
        process.send(signal.SIGKILL)
        await process.wait()
    folder.remove()
