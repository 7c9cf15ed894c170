"""What retention does to a catalog: which policy applies, what is looked at when, and which jobs come of it."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from controller import (
    backups,
    installation,
    jobs,
    previews,
    prune_queue,
    retention,
    schedules,
    servers,
    settings,
    storages,
)
from controller.cycle import dispatch, prune
from controller.db import models
from controller.errors import DeleteBound
from controller.jobs import Failure, Job, JobFilter
from controller.order_types import DeleteOrder
from controller.retention import Expiration
from controller.schedules import NewSchedule, Schedule, ScheduleChange
from controller.servers import Server
from controller.services import retentions
from controller.storages import Storage
from tests.controller.chains import DAY, left, put, put_chain, put_chains
from tests.controller.world import Agent, World

HOUR = timedelta(hours=1)
LAST = {"preset": "keep-last"}


@dataclass
class Place:
    """A server on a hypervisor, and a storage whose policy is Keep Last 1 alone."""

    world: World
    agent: Agent
    server: Server
    storage: Storage

    def chains(self, count: int, length: int = 2) -> list[list[str]]:
        return put_chains(self.world, self.agent, self.server, self.storage, count, length)

    def tick(self) -> list[Job]:
        """Run the prune step and return the prune jobs that there are now, oldest first."""
        self.agent.heartbeat()
        self.quiet_tick()
        return self.jobs()

    def quiet_tick(self) -> list[Job]:
        """The same, with the agent as silent as it is."""
        world = self.world
        asyncio.run(prune.run(world.database, world.limits, world.vault, world.now()))
        return self.jobs()

    def jobs(self) -> list[Job]:
        """Return the prune jobs, oldest first; of those made at one time, the one that was sent."""
        made = self.world.run(jobs.list_jobs, JobFilter(types=("prune",)))
        return sorted(made, key=lambda one: (one.create_time, one.state == "queued", one.job_id))

    def schedule(self, **values: Any) -> Schedule:
        new = NewSchedule(self.agent.hypervisor_id, self.storage.storage_id, "scheduled_only", **values)
        return self.world.run(schedules.create, new, self.world.now())

    def done(self, job: Job) -> Job:
        result = {"delete": {"backup_ids": list(job.spec["backup_ids"]), "freed_bytes": "5"}}
        return self.agent.finish(self.agent.accept(job), result=result)

    def set(self, **values: Any) -> None:
        self.world.run(settings.update, values, "", self.world.now())


@pytest.fixture
def place(world: World) -> Place:
    agent = world.enroll("h1")
    return Place(world, agent, world.server(agent, "web"), world.storage(retention=LAST, keep_last=1))


def flat(chains: list[list[str]]) -> set[str]:
    return {one for chain in chains for one in chain}


# ---- what goes, and when ------------------------------------------------------------------------------------------------


@pytest.mark.feature("R7")
@pytest.mark.feature("R8")
@pytest.mark.feature("R11")
def test_of_three_chains_the_active_one_and_one_beside_it_stay(place: Place) -> None:
    oldest, *others = place.chains(3)

    (job,) = place.tick()

    assert job.spec["backup_ids"] == [oldest[1], oldest[0]]  # newest first
    assert (job.type, job.state, job.hypervisor_id) == ("prune", "dispatched", place.agent.hypervisor_id)
    assert job.generation > 0
    assert job.requester == "retention"
    place.done(job)
    assert left(place.world, place.server) == flat(others)
    assert place.tick() == place.jobs()
    assert len(place.jobs()) == 1


@pytest.mark.feature("R1")
def test_without_a_policy_nothing_is_pruned_however_many_chains_there_are(place: Place) -> None:
    place.world.change_storage(place.storage, retention={})
    place.chains(5)
    assert place.tick() == []


@pytest.mark.feature("R11")
@pytest.mark.feature("G4")
def test_a_storage_is_evaluated_every_prune_interval(place: Place) -> None:
    place.tick()
    place.chains(3)
    place.world.clock.advance(11.9 * 3600)
    assert place.tick() == []
    place.world.clock.advance(0.2 * 3600)
    assert len(place.tick()) == 1


@pytest.mark.feature("R11")
def test_a_server_is_looked_at_right_after_each_of_its_backups(place: Place) -> None:
    place.tick()  # the storage's own round is over for twelve hours
    first, _ = place.chains(2)
    assert place.tick() == []

    place.agent.back_up(place.server, place.storage, "c9")

    (job,) = place.tick()
    assert set(job.spec["backup_ids"]) == set(first)


@pytest.mark.feature("G4")
@pytest.mark.feature("S22")
def test_so_many_storages_a_tick_longest_waiting_first_and_none_that_is_read_only(place: Place) -> None:
    world = place.world
    made = [place.storage, *(world.storage(f"s{number}", retention=LAST, keep_last=0) for number in range(5))]
    world.change_storage(made[2], read_only=True)
    world.change_storage(made[3], enabled=False)
    for storage in made:
        put_chains(world, place.agent, place.server, storage, 3, 1)
    place.set(max_prune_storages_per_tick=2)

    assert {job.storage_id for job in place.tick()} == {made[0].storage_id, made[1].storage_id}
    place.tick()
    assert {job.storage_id for job in place.tick()} == {made[number].storage_id for number in (0, 1, 4, 5)}


@pytest.mark.feature("S22")
def test_a_storage_that_became_read_only_keeps_its_candidates_and_fails_nothing(place: Place) -> None:
    place.chains(3)
    place.set(max_prune_dispatches_per_tick=1)
    other = place.world.server(place.agent, "db")
    put_chains(place.world, place.agent, other, place.storage, 3)
    assert len(place.tick()) == 1
    place.world.change_storage(place.storage, read_only=True)
    assert len(place.tick()) == 1
    place.world.change_storage(place.storage, read_only=False)
    assert len(place.tick()) == 2


@pytest.mark.feature("G5")
def test_so_many_jobs_a_tick_and_the_rest_at_the_next(place: Place) -> None:
    world = place.world
    place.set(max_prune_dispatches_per_tick=3)
    for number in range(8):
        put_chains(world, place.agent, world.server(place.agent, f"s{number}"), place.storage, 3, 1)

    counts = [len(place.tick()) for _ in range(4)]

    assert counts == [3, 6, 8, 8]
    assert len({job.server_id for job in place.jobs()}) == 8


@pytest.mark.feature("R11")
def test_a_round_that_was_cut_off_goes_on_where_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    world = place.world
    monkeypatch.setattr(retention, "SERVERS_MAX", 2)
    monkeypatch.setattr(retention.servers_on, "__kwdefaults__", {"after": "", "limit": 2})
    for number in range(6):
        put_chains(world, place.agent, world.server(place.agent, f"s{number}"), place.storage, 3, 1)
    real, seen = prune_queue.advance, list[str]()

    def advance(storage_id: str, reached: str, going: list[str], now: Any) -> None:
        if len(seen) == 1:
            seen.append("killed")
            raise RuntimeError("cut off")
        seen.append(reached)
        real(storage_id, reached, going, now)

    monkeypatch.setattr(prune_queue, "advance", advance)
    with pytest.raises(RuntimeError, match="cut off"):
        place.tick()
    assert place.world.run(prune_queue.cursor, place.storage.storage_id) == seen[0]
    assert len(place.tick()) == 6
    assert len(seen) == 4  # the two parts that were left, and none again


def test_a_server_that_cannot_be_decided_holds_up_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.chains(3)
    broken = place.world.server(place.agent, "broken")
    put_chains(place.world, place.agent, broken, place.storage, 3)
    real = retention.going

    def going(history: retention.History, applied: retention.Applied, now: Any) -> list[str]:
        if history.server_id == broken.server_id:
            raise ZeroDivisionError
        return real(history, applied, now)

    monkeypatch.setattr(retention, "going", going)
    assert [job.server_id for job in place.tick()] == [place.server.server_id]


# ---- which policy -------------------------------------------------------------------------------------------------------


@pytest.mark.feature("R12")
@pytest.mark.feature("R21")
def test_the_schedule_of_the_servers_present_hypervisor_decides_if_it_uses_the_storage(place: Place) -> None:
    world, other = place.world, place.world.enroll("h2")
    elsewhere = world.storage("elsewhere")
    place.chains(4)
    mine = place.schedule(overrides={"keep_last": 2}, time_zone="Europe/Berlin")

    def applied() -> retention.Applied:
        return world.run(retention.verdicts_of, place.server.server_id, place.storage.storage_id, world.now())[1]

    found = applied()
    assert (found.keep_last, found.keep_last_origin, found.policy_origin) == (2, "schedule", "storage")
    assert (found.time_zone, found.schedule_id) == ("Europe/Berlin", mine.schedule_id)
    (job,) = place.tick()
    assert len(job.spec["backup_ids"]) == 2  # one chain of four goes
    place.done(job)

    # a schedule that uses another storage has no say about this one
    world.run(schedules.update, mine.schedule_id, ScheduleChange(storage=elsewhere.storage_id), "", world.now())
    found = applied()
    assert (found.keep_last, found.schedule_id, found.time_zone) == (1, "", "UTC")

    # it is the present hypervisor's that counts, wherever the backups were made
    new = NewSchedule(other.hypervisor_id, place.storage.storage_id, "scheduled_only", overrides={"retention": {}})
    world.run(schedules.create, new, world.now())
    world.run(servers.update, place.server.server_id, {"hypervisor_id": "h2"}, "", world.now())
    assert applied().policy == {}
    world.clock.advance(13 * 3600)
    assert len(place.tick()) == 1


@pytest.mark.feature("R21")
@pytest.mark.feature("R5")
def test_days_begin_in_the_schedules_time_zone(place: Place) -> None:
    world = place.world
    world.change_storage(place.storage, retention={"daily": 2}, keep_last=0)
    noon = world.clock.time.replace(hour=12, minute=0)
    late = put(
        world, place.agent, place.server, place.storage, noon.replace(hour=22) - DAY
    )  # in Auckland, today at 11:00
    today = put(world, place.agent, place.server, place.storage, noon - HOUR)  # in Auckland, tomorrow at 00:00
    before = put(world, place.agent, place.server, place.storage, noon - DAY)  # in Auckland, today at 01:00

    def kept() -> set[str]:
        verdicts, _ = world.run(retention.verdicts_of, place.server.server_id, place.storage.storage_id, world.now())
        return {one.backup_id for one in verdicts if one.kept}

    assert kept() == {today, late}
    place.schedule(time_zone="Pacific/Auckland")
    assert kept() == {today, late}
    world.run(backups.mark_deleted, [late], world.now())
    assert kept() == {today, before}


# ---- what is left alone -------------------------------------------------------------------------------------------------


@pytest.mark.feature("R19")
def test_a_chain_in_use_is_passed_over_and_the_others_go(place: Place) -> None:
    oldest, old, *_ = place.chains(4)
    verify = place.world.verify(oldest[1])

    (job,) = place.tick()
    assert set(job.spec["backup_ids"]) == set(old)
    place.done(job)

    place.agent.finish(place.agent.accept(verify), result={"verify": {"damaged_count": "0"}})
    place.world.clock.advance(3601)
    assert set(place.tick()[-1].spec["backup_ids"]) == set(oldest)


@pytest.mark.feature("R19")
def test_while_a_server_is_backed_up_nothing_of_it_is_pruned(place: Place) -> None:
    place.chains(3)
    running = place.world.backup(place.server, place.storage)
    assert place.tick() == []
    place.agent.finish(place.agent.accept(running), "failed", failure=Failure("STORAGE_FULL", "full"))
    place.world.clock.advance(3601)
    assert len(place.tick()) == 1


@pytest.mark.feature("R20")
def test_damaged_and_missing_points_protect_nothing_and_stay(place: Place) -> None:
    first, second, third, fourth = (chain[0] for chain in place.chains(4, 1))
    place.world.run(backups.mark_damaged, [fourth], place.world.now())

    (job,) = place.tick()

    assert job.spec["backup_ids"] == [first]  # active is the third, and the second stays beside it
    place.done(job)
    assert left(place.world, place.server) == {second, third, fourth}


@pytest.mark.feature("R7")
def test_a_copy_is_no_chain_that_keeps_another_out(place: Place) -> None:
    first, second = place.chains(2, 1)
    copies = [
        put(
            place.world,
            place.agent,
            place.server,
            place.storage,
            place.world.clock.time - HOUR / 2 + HOUR / 8 * number,
            kind="copy",
        )
        for number in range(2)
    ]
    (job,) = place.tick()
    assert job.spec["backup_ids"] == [copies[0]]
    place.done(job)
    assert left(place.world, place.server) == {*first, *second, copies[1]}  # the newest of all is never lost


@pytest.mark.feature("R13")
def test_tails_are_trimmed_where_the_policy_says_so_but_never_of_the_active_chain(place: Place) -> None:
    world, now = place.world, place.world.clock.time
    world.change_storage(place.storage, retention={"monthly": 2, "trim_tails": True}, keep_last=0)
    month_end = now.replace(day=1, hour=3) - DAY * 3
    old = put_chain(
        world, place.agent, place.server, place.storage, month_end, 6
    )  # three days of October, three of November
    new = put_chain(world, place.agent, place.server, place.storage, now - DAY * 5, 5)

    (job,) = place.tick()

    assert set(job.spec["backup_ids"]) == set(old[3:])
    place.done(job)
    assert left(world, place.server) == {*old[:3], *new}


@pytest.mark.feature("R11")
def test_what_is_kept_again_when_a_job_leaves_the_queue_is_not_deleted(place: Place) -> None:
    world = place.world
    oldest = place.chains(3)[0]
    other = world.server(place.agent, "db")
    put_chains(world, place.agent, other, place.storage, 3)
    first, second = place.tick()
    assert (first.state, second.state) == ("dispatched", "queued")  # one removal at a time

    world.change_storage(place.storage, keep_last=5)
    place.done(first)

    ended = world.job(second.job_id)
    assert (ended.state, ended.failure and ended.failure.reason) == ("failed", "RETENTION_CHANGED")
    assert world.run(models.LeaseHold.select().where(models.LeaseHold.job_id == second.job_id).count) == 0
    assert oldest


# ---- who deletes --------------------------------------------------------------------------------------------------------


@pytest.mark.feature("N16")
def test_deletes_can_be_bound_to_one_hypervisor(place: Place) -> None:
    world, keeper = place.world, place.world.enroll("keeper")
    oldest = place.chains(3)[0]
    world.change_storage(place.storage, delete_hypervisor_id="keeper")

    (job,) = place.tick()
    assert (job.hypervisor_id, job.spec["domain_uuid"]) == (keeper.hypervisor_id, "")

    world.cancel(job)
    preview = world.run(previews.preview_delete, [oldest[1]], world.context())
    refused = DeleteOrder((oldest[1],), preview.confirmation, hypervisor_id="h1")
    with pytest.raises(DeleteBound):
        world.start(refused)
    assert world.start(DeleteOrder((oldest[1],), preview.confirmation)).hypervisor_id == keeper.hypervisor_id


@pytest.mark.feature("N16")
def test_a_job_that_waits_while_deletes_are_bound_elsewhere_is_refused(place: Place) -> None:
    world = place.world
    world.enroll("keeper")
    place.chains(3)
    other = world.server(place.agent, "db")
    put_chains(world, place.agent, other, place.storage, 3)
    first, second = place.tick()
    world.change_storage(place.storage, delete_hypervisor_id="keeper")
    place.done(first)
    ended = world.job(second.job_id)
    assert (ended.state, ended.failure and ended.failure.reason) == ("failed", "DELETE_BOUND")


@pytest.mark.feature("R11")
def test_a_prune_goes_to_an_idle_hypervisor_that_has_the_storage_and_to_no_stranger(place: Place) -> None:
    world, colleague = place.world, place.world.enroll("a-colleague")
    world.enroll("a-stranger")
    new = NewSchedule(colleague.hypervisor_id, place.storage.storage_id, "scheduled_only")
    world.run(schedules.create, new, world.now())
    place.chains(3)
    busy = world.backup(world.server(place.agent, "db"), place.storage)

    (job,) = place.tick()
    assert job.hypervisor_id == colleague.hypervisor_id
    assert (job.state, busy.state) == ("dispatched", "dispatched")

    world.cancel(job)
    schedule = world.run(schedules.of_hypervisor, colleague.hypervisor_id)
    assert schedule
    world.run(schedules.delete, schedule.schedule_id, world.now())
    world.clock.advance(60)
    for agent in (colleague, world.enroll("b-stranger")):
        agent.heartbeat()
    world.clock.advance(13 * 3600)
    assert len(place.quiet_tick()) == 1  # nobody who has the storage is online; it is tried again in an hour
    world.clock.advance(3601)
    assert place.tick()[-1].hypervisor_id == place.agent.hypervisor_id


@pytest.mark.feature("R11")
def test_in_local_folders_each_hypervisor_deletes_what_it_made(place: Place) -> None:
    world, other = place.world, place.world.enroll("h2")
    local = world.storage("folder", type="local", config={"path": "/b"}, secrets={}, retention=LAST, keep_last=0)
    start = world.clock.time - DAY * 5
    here = put(world, place.agent, place.server, local, start)
    there = put(world, other, place.server, local, start + DAY)
    put(world, other, place.server, local, start + 2 * DAY)

    found = {job.hypervisor_id: job.spec["backup_ids"] for job in place.tick()}

    assert found == {place.agent.hypervisor_id: [here], other.hypervisor_id: [there]}


# ---- what is said of it -------------------------------------------------------------------------------------------------


@pytest.mark.feature("R18")
@pytest.mark.feature("R16")
def test_each_backup_says_why_it_stays_and_what_goes_soon_is_listed(place: Place) -> None:
    world = place.world
    world.change_storage(place.storage, retention={"days": 10}, keep_last=0)
    place.schedule(overrides={"full_interval_days": 1})
    ids = [chain[0] for chain in place.chains(9, 1)]

    explanation = world.run(retention.explain, ids[0], world.now())
    soon = world.run(retention.expirations, world.now(), 7)

    assert [one.rule for one in explanation.verdict.reasons] == ["age"]
    assert explanation.applied.policy == {"days": 10}
    assert explanation.verdict.expire_time is not None
    assert timedelta(days=1) < explanation.verdict.expire_time - world.clock.time < timedelta(days=3)
    assert [one.backup_id for one in soon] == ids[:6]
    assert world.run(retention.expirations, world.now(), 7, server_ids=[place.server.server_id]) == [
        *world.run(retention.expirations, world.now(), 7, storage_id=place.storage.storage_id)
    ]


@pytest.mark.feature("R16")
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_what_goes_soon_is_listed_over_pages_without_a_gap_or_a_double(place: Place, size: int) -> None:
    """Also where a page is full just as a storage ends: the storages behind it were left out then."""
    world = place.world
    for name in ("a", "b", "c"):
        storage = world.storage(name, retention={"days": 1}, keep_last=0)
        for number in range(2):
            server = world.server(place.agent, f"{name}{number}")
            put_chains(world, place.agent, server, storage, 3, 1)
    whole = world.run(retention.expirations, world.now(), 7)
    assert len({one.server_id for one in whole}) == 6

    async def page(begin: retentions.Place) -> tuple[list[Expiration], retentions.Place | None]:
        wanted = sorted(one.storage_id for one in world.run(storages.list_storages)), ""
        return await retentions.expirations_from(world.database.run, wanted, begin, size, 7, world.now())

    found: list[str] = []
    begin: retentions.Place | None = ("", "")
    pages = 0
    while begin is not None:
        part, begin = asyncio.run(page(begin))
        found += [one.backup_id for one in part]
        pages += 1
    assert sorted(found) == sorted(one.backup_id for one in whole)
    assert (pages > 1) == (size < 100)


def test_an_earlier_epochs_candidates_are_no_harm(place: Place) -> None:
    """A database that was put back knows of backups that are gone: the engine says so, and nothing else goes."""
    place.chains(3)
    (job,) = place.tick()
    place.world.run(installation.get)
    place.agent.finish(place.agent.accept(job), "failed", failure=Failure("BACKUP_NOT_FOUND", "gone"))
    assert len(left(place.world, place.server)) == 6
    place.world.run(dispatch.run, place.world.limits, place.world.now())
