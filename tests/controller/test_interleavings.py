"""Any order of what people, agents, the clock and a restart can do: no server has two holders, no lease outlives its job, no
job waits for nothing, and what has ended stays as it ended.

The agents here are as bad as real ones: events wait in their outbox, receipts get lost, hosts crash and forget.
"""

import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller import batches, jobs, leases, schedules
from controller.agents import hello, outbox
from controller.agents.convert import Accepted, AgentEvent, Finished
from controller.agents.deliveries import take
from controller.agents.outbox import Stamp
from controller.batches import Batch
from controller.cycle import batch_dispatch, batch_work, dispatch
from controller.db import models
from controller.errors import ControllerError
from controller.hypervisors import find
from controller.jobs import Failure, Job, JobFilter
from controller.rules import states
from controller.rules.exclusion import GROUPS, Group, Outcome, decide
from controller.schedules import NewSchedule
from tests.controller.world import Agent, World, record_of

CAP = 2
SERVERS = ("a", "b", "c", "d")


@dataclass
class Host:
    """An agent with a memory: what it works on, and what it has not sent yet."""

    agent: Agent
    session_id: str = ""
    sent: set[str] = field(default_factory=set)
    in_flight: list[Stamp] = field(default_factory=list)
    past: list[Stamp] = field(default_factory=list)
    unsent: list[AgentEvent] = field(default_factory=list)
    journals: int = 1

    def say(self, stamp: Stamp, said: Any) -> None:
        self.agent.sequence += 1
        self.unsent.append(self.agent.event(stamp, said, self.agent.sequence))


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bm-interleavings-"))
        self.world = World.open(self.folder / "controller")
        self.hosts = [Host(self.world.enroll("h1")), Host(self.world.enroll("h2"))]
        self.storage = self.world.storage(defaults={"backup_concurrency": CAP})
        # Three servers share a hypervisor of two slots; the fourth has one for itself.
        self.servers = [self.world.server(self.hosts[name == "d"].agent, name) for name in SERVERS]
        schedule = NewSchedule(self.hosts[0].agent.hypervisor_id, self.storage.storage_id, "full_access")
        self.schedule_id = self.world.run(schedules.create, schedule, self.world.now()).schedule_id
        self.ends: dict[str, tuple[str, int]] = {}
        self.backups: list[str] = []
        for host in self.hosts:
            self._arrive(host)
        for server in self.servers[:2]:
            host = self.hosts[0]
            job = self.world.backup(server, self.storage)
            host.agent.accept(job)
            host.agent.finish(job, record=record_of(job, f"chain-{server.name}"))
            self.backups.append(job.backup_id)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()
            shutil.rmtree(self.folder)

    # ---- people ---------------------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, len(SERVERS) - 1))
    def back_up(self, number: int) -> None:
        self._try(lambda: self.world.backup(self.servers[number], self.storage))

    @rule()
    def night(self) -> None:
        """Everything is backed up at once."""
        for number in range(len(SERVERS)):
            self.back_up(number)

    @rule(number=st.integers(0, 1), host=st.integers(0, 1))
    def verify(self, number: int, host: int) -> None:
        where = self.hosts[host].agent.hypervisor_id
        self._try(lambda: self.world.verify(self.backups[number], hypervisor_id=where))

    @rule(number=st.integers(0, 1), host=st.integers(0, 1))
    def delete(self, number: int, host: int) -> None:
        where = self.hosts[host].agent.hypervisor_id
        self._try(lambda: self.world.delete([self.backups[number]], hypervisor_id=where))

    @rule()
    def force_batch(self) -> None:
        world, limits = self.world, self.world.limits
        self._try(lambda: world.run(batch_dispatch.force, self.schedule_id, "tester", "", limits, world.now()))

    @rule(choice=st.integers(0, 3), again=st.booleans())
    def end_or_retry_batch(self, choice: int, again: bool) -> None:
        world, known = self.world, self.world.run(batches.list_batches)
        if not known:
            return
        batch_id = known[choice % len(known)].batch_id
        if again:
            self._try(lambda: world.run(batch_dispatch.retry, batch_id, "tester", "", world.limits, world.now()))
        else:
            world.run(batch_work.cancel, batch_id, "CANCELLED", world.now())
            world.run(dispatch.run, world.limits, world.now())

    @rule(choice=st.integers(0, 7))
    def cancel(self, choice: int) -> None:
        live = self.world.run(jobs.live)
        if live:
            self._try(lambda: self.world.cancel(live[choice % len(live)]))

    # ---- agents ---------------------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 1), well=st.booleans())
    def work(self, number: int, well: bool) -> None:
        """Fetch, finish one, and report it."""
        self.fetch_commands(number, receipt=well)
        self.finish(number, 0, well)
        self.deliver(number, twice=not well)

    @rule(number=st.integers(0, 1), receipt=st.booleans())
    def fetch_commands(self, number: int, receipt: bool) -> None:
        """Commands arrive; their receipts may not."""
        world, host = self.world, self.hosts[number]
        sent = frozenset(host.sent)
        hypervisor_id = host.agent.hypervisor_id
        taken = world.run(take, hypervisor_id, host.session_id, sent, world.vault, world.limits, world.now())
        for command in taken.commands:
            host.sent.add(command.command_id)
            stamp = Stamp(command.job_id, command.attempt, command.generation, command.epoch)
            if receipt:
                world.run(outbox.receive, hypervisor_id, command.command_id, world.now())
            if command.WhichOneof("body") == "run" and stamp not in host.past:
                host.past.append(stamp)
                host.in_flight.append(stamp)
                host.say(stamp, Accepted())
            elif command.WhichOneof("body") == "cancel" and stamp in host.in_flight:
                host.in_flight.remove(stamp)
                host.say(stamp, Finished("cancelled"))

    @rule(number=st.integers(0, 1), choice=st.integers(0, 7), well=st.booleans())
    def finish(self, number: int, choice: int, well: bool) -> None:
        host = self.hosts[number]
        if not host.in_flight:
            return
        stamp = host.in_flight.pop(choice % len(host.in_flight))
        job = self.world.job(stamp.job_id)
        record = record_of(job, f"chain-{job.server_id}") if job.type == "backup" else None
        said = Finished("completed", record=record) if well else Finished("failed", Failure("STORAGE_FULL", "full"))
        host.say(stamp, said)

    @rule(number=st.integers(0, 1), twice=st.booleans())
    def deliver(self, number: int, twice: bool) -> None:
        host = self.hosts[number]
        batch = list(host.unsent)
        host.agent.send(*batch)
        if twice:
            host.agent.send(*batch)
        host.unsent.clear()

    @rule(number=st.integers(0, 1), choice=st.integers(0, 30))
    def say_something_old(self, number: int, choice: int) -> None:
        """A result of whatever the agent once worked on, though it ended long ago or belongs to another attempt."""
        host = self.hosts[number]
        if host.past:
            stamp = host.past[choice % len(host.past)]
            if stamp not in host.in_flight:
                host.say(replace(stamp, generation=stamp.generation - choice % 2), Finished("completed"))

    @rule(number=st.integers(0, 1))
    def reconnect(self, number: int) -> None:
        self._arrive(self.hosts[number])

    @rule(number=st.integers(0, 1))
    def crash_and_forget(self, number: int) -> None:
        """The host comes back with an empty journal and no operation."""
        host = self.hosts[number]
        host.unsent.clear()
        host.in_flight.clear()
        host.journals += 1
        host.agent.journal_id, host.agent.sequence = f"journal-{host.journals}", 0
        self._arrive(host)

    # ---- time and the controller ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 20, 130, 3600 * 24 + 1]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)
        self.world.tick()
        self.world.run(self._no_batch_waits_for_nothing)

    @rule(seconds=st.sampled_from([5, 3600, 3600 * 24 * 40]), ahead=st.booleans())
    def clock_jumps(self, seconds: int, ahead: bool) -> None:
        """Somebody set the clock; nobody was heard meanwhile, and what the agents said before is from another time."""
        self.world.clock.advance(seconds if ahead else -seconds)
        self.world.tick()
        for host in self.hosts:
            host.agent.heartbeat()
        self.world.tick()

    @rule()
    def restart(self) -> None:
        self.world.restart()

    # ---- what always holds ----------------------------------------------------------------------------------------------

    @invariant()
    @precondition(lambda self: hasattr(self, "world"))
    def all_is_well(self) -> None:
        self.world.run(self._check)

    def _check(self) -> None:
        live = jobs.live()
        at_work = batches.live(within=states.BATCH_AT_WORK)
        self._batches_have_work(at_work, live)
        self._leases_belong_to_live_jobs({job.job_id for job in live} | {one.batch_id for one in at_work})
        self._holders_are_alone(live)
        self._what_runs_may_run_together([job for job in live if job.state in jobs.SENT])
        for host in self.hosts:
            self._nobody_waits_for_nothing(live, host.agent.hypervisor_id)
        self._ends_are_ends()

    def _leases_belong_to_live_jobs(self, live: set[str]) -> None:
        holds = list(models.LeaseHold.select())
        alone = {hold.resource: hold.job_id for hold in holds if hold.exclusive}
        shared = Counter(hold.resource for hold in holds if not hold.exclusive)
        assert {hold.job_id for hold in holds} <= live
        assert {slot.job_id for slot in models.Slot.select()} - {""} <= live
        for lease in models.Lease.select():
            assert lease.holder == alone.get(lease.resource, "")
            assert lease.shared == shared[lease.resource]
            assert not (lease.holder and lease.shared)

    def _batches_have_work(self, at_work: list[Batch], live: list[Job]) -> None:
        """One batch for a hypervisor at most, and each has a job that has not ended, and holds its hypervisor's work."""
        assert len({one.hypervisor_id for one in at_work}) == len(at_work)
        for batch in at_work:
            assert any(job.batch_id == batch.batch_id for job in live), batch
            assert leases.holders(leases.work_resource(batch.hypervisor_id)) == [batch.batch_id]

    def _no_batch_waits_for_nothing(self) -> None:
        """After a tick a batch is deferred for what is at work on its hypervisor, or because nobody is there."""
        for batch in batches.live(within=(states.DEFERRED,)):
            online = find(batch.hypervisor_id, self.world.limits, self.world.clock.time).state == "online"
            assert not online or leases.holders(leases.work_resource(batch.hypervisor_id)), batch

    def _holders_are_alone(self, live: list[Job]) -> None:
        transfers = [job for job in live if GROUPS[job.type] is Group.TRANSFER]
        singles = [job for job in transfers if not job.batch_id]
        assert len({job.server_id for job in singles}) == len(singles)
        for job in transfers:
            server, following = leases.server_resource(job.server_id), leases.next_resource(job.server_id)
            if job.state in jobs.SENT:
                assert leases.holders(server) == [job.job_id]
            elif job.state == jobs.QUEUED:
                assert [job.job_id] in (leases.holders(server), leases.holders(following))

    def _what_runs_may_run_together(self, sent: list[Job]) -> None:
        singles = [job for job in sent if not job.batch_id]  # how many of a batch run at once is the agent's to see to
        busy = Counter(job.hypervisor_id for job in singles if GROUPS[job.type] is Group.TRANSFER)
        assert max(busy.values(), default=0) <= CAP
        for one, other in itertools.permutations(dispatch.works_of(sent), 2):
            if one.group is other.group is Group.BATCH:
                continue  # of one batch: there is never another one on the hypervisor
            assert decide(one, other) in {Outcome.RUN, Outcome.CAPPED}, (one, other)

    def _nobody_waits_for_nothing(self, live: list[Job], hypervisor_id: str) -> None:
        """A single waits for a slot or for a removal of its server, a removal for the one before it, a check for that of its chain."""
        if find(hypervisor_id, self.world.limits, self.world.clock.time).state != "online":
            return
        mine = [job for job in live if job.hypervisor_id == hypervisor_id]
        works = dispatch.works_of([job for job in mine if job.state in jobs.SENT])
        working = [one.group for one in works]
        removals = {one.server_id for one in works if one.group is Group.REMOVAL}
        batch = bool(batches.live(hypervisor_id=hypervisor_id))  # at work, or one that has waited long enough
        for job in mine:
            if job.state == jobs.QUEUED:
                group = GROUPS[job.type]
                deletes = [one for one in live if one.type == "delete"]
                waits = {
                    Group.TRANSFER: batch or working.count(Group.TRANSFER) >= CAP or job.server_id in removals,
                    Group.REMOVAL: batch or Group.REMOVAL in working,
                    Group.CHECK: any(job.backup_id in one.spec["backup_ids"] for one in deletes),
                }
                assert waits[group], job

    def _ends_are_ends(self) -> None:
        for job in jobs.list_jobs(JobFilter(), limit=1000):
            if job.ended:
                assert job.end_time is not None
                assert self.ends.setdefault(job.job_id, (job.state, job.version)) == (job.state, job.version)
        rows = models.OutboxCommand.select().where(
            models.OutboxCommand.settle_time.is_null() & (models.OutboxCommand.kind == "run")
        )
        assert {row.job_id for row in rows}.isdisjoint(self.ends)

    # ---- inside ---------------------------------------------------------------------------------------------------------

    def _try(self, act: Any) -> None:
        """Do what may be refused; a refusal is one of ours, and leaves everything as it was."""
        try:
            act()
        except ControllerError:
            return

    def _arrive(self, host: Host) -> None:
        """What a session does from Hello on: events first, then judgement, then the queue."""
        world, agent = self.world, host.agent
        welcome = agent.hello(*host.in_flight, command_ids=tuple(host.sent & self._journal(host)))
        host.session_id, host.sent = welcome.session_id, set()
        agent.send(*host.unsent)
        host.unsent.clear()
        world.run(hello.judge, agent.hypervisor_id, welcome.suspects, world.limits, world.now())
        world.run(dispatch.run, world.limits, world.now(), agent.hypervisor_id)

    def _journal(self, host: Host) -> set[str]:
        """Return the commands that a host still remembers to have got: those whose work it knows."""

        def read() -> set[str]:
            rows = models.OutboxCommand.select()
            return {row.command_id for row in rows if any(one.job_id == row.job_id for one in host.in_flight)}

        return self.world.run(read)


Machine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestInterleavings = pytest.mark.feature("X1", "X2", "X3", "X4", "X7", "X8", "X9", "X16")(Machine.TestCase)
