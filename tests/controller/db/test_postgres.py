"""Several controllers on one PostgreSQL: one transaction at a time, word from the others, and a connection that breaks."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from controller.agents import ownership
from controller.cycle import turn
from controller.db.database import Database
from controller.db.models import Lease
from controller.db.notes import Note, note
from controller.db.postgres import PAYLOAD_BYTES_MAX, payloads
from controller.errors import StaleGeneration
from tests.controller.conftest import migrate
from tests.controller.world import World
from tests.servers.postgres import Postgres
from tests.waiting import wait_until, wait_until_async

ROOT = Path(__file__).parents[3]
STEPS = 150
PROGRAM = """
import sys
from controller.db.database import Database
from controller.db.notes import note
from tests.controller.db.test_postgres import step
database = Database.open(sys.argv[1])
for number in range(int(sys.argv[2])):
    database.call(step)
    database.call(note, "job", "from another", number + 1)
database.close()
"""


def step() -> None:
    """Read, and write what follows from it: between the two nobody may come."""
    row = Lease.get_or_none(Lease.resource == "counter")
    if row is None:
        Lease.insert(resource="counter", generation=1).execute()
    else:
        Lease.update(generation=row.generation + 1).where(Lease.resource == "counter").execute()


def counted() -> int:
    return int(Lease.get(Lease.resource == "counter").generation)


def begin(url: str, steps: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, url, str(steps)], cwd=ROOT)


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.emptied(migrate)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database.open(url)
    yield database
    database.close()


def test_what_one_controller_has_read_no_other_changes_before_it_writes(url: str, database: Database) -> None:
    database.call(step)
    others = [begin(url, STEPS) for _ in range(2)]
    try:
        assert [one.wait(60) for one in others] == [0, 0]
    finally:
        for one in others:
            one.kill()
            one.wait()

    assert database.call(counted) == 1 + 2 * STEPS


def test_controllers_that_start_together_on_an_empty_database_make_its_tables_once(postgres: Postgres) -> None:
    url = postgres.database()
    others = [begin(url, 1) for _ in range(3)]
    try:
        assert [one.wait(60) for one in others] == [0, 0, 0]
    finally:
        for one in others:
            one.kill()
            one.wait()

    database = Database.open(url)
    try:
        assert database.call(counted) == 3
    finally:
        database.close()


def test_word_of_other_controllers_arrives_and_one_s_own_once(url: str, database: Database) -> None:
    heard: list[Note] = []
    database.subscribe(heard.extend)
    last = Note("job", "from another", 3)

    other = begin(url, 3)
    try:
        wait_until(lambda: last in heard, 30, "the other's word")
        assert other.wait(30) == 0
    finally:
        other.kill()
        other.wait()
    database.call(note, "job", "own", 1)
    begin_again = begin(url, 1)
    begin_again.wait(30)
    wait_until(
        lambda: heard.count(Note("job", "from another", 1)) == 2, 30, "another word, after our own could have come back"
    )

    assert heard.count(Note("job", "own", 1)) == 1


def test_a_connection_that_breaks_is_made_anew_and_costs_nobody_anything(
    url: str, database: Database, postgres: Postgres
) -> None:
    database.call(step)
    wait_until(lambda: postgres.connected(url) == 2, 30, "the thread's connection and the ear's")
    assert postgres.cut(url) == 2

    database.call(step)

    assert database.call(counted) == 2


def test_a_transaction_that_is_cut_in_the_middle_runs_again_as_a_whole(
    url: str, database: Database, postgres: Postgres
) -> None:
    begun: list[int] = []

    def interrupted() -> None:
        begun.append(1)
        step()
        if len(begun) == 1:
            postgres.cut(url)
        step()

    database.call(interrupted)

    assert len(begun) == 2
    assert database.call(counted) == 2


def test_the_ear_comes_back_after_a_break(
    url: str, database: Database, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.db.postgres.RECONNECT_SECONDS", 0.05)
    heard: list[Note] = []
    database.subscribe(heard.extend)
    postgres.cut(url)

    def told() -> bool:
        assert begin(url, 1).wait(30) == 0
        return Note("job", "from another", 1) in heard

    wait_until(told, 60, "a word after the break")


def test_words_fit_the_channel_and_all_of_them_go() -> None:
    notes = [Note("job", f"{number:036}", number) for number in range(1000)]

    lines = list(payloads("speaker", [*notes, Note("job", "x" * 9000, 1)]))

    assert all(len(line) <= PAYLOAD_BYTES_MAX for line in lines)
    assert sum(line.count('["job"') for line in lines) == 1000


def test_a_turn_is_one_holder_s_until_it_runs_out_or_is_given_back(world: World) -> None:
    run = world.run
    assert run(turn.take, "it", "a")
    assert not run(turn.take, "it", "b")
    assert run(turn.keep, "it", "a")
    assert run(turn.lasts, "it", "a")

    assert run(turn.take, "it", "a", timedelta(seconds=-1))  # it ran out a second ago
    assert not run(turn.keep, "it", "a")
    assert not run(turn.lasts, "it", "a")
    assert run(turn.take, "it", "b")
    run(turn.give_back, "it", "a")
    assert run(turn.lasts, "it", "b")


@pytest.mark.feature("X16")
def test_only_the_owner_of_the_newest_session_sends_and_only_while_its_turn_lasts(world: World) -> None:
    agent = world.enroll("kvm1")
    session_id = agent.hello().session_id
    world.run(turn.give_back, "sessions:nobody", "nobody")  # which an imitated agent's session has from its hello
    with pytest.raises(StaleGeneration, match="lost its claim"):
        world.run(ownership.check, agent.hypervisor_id, session_id)

    world.run(turn.take, "sessions:nobody", "nobody")
    world.run(ownership.check, agent.hypervisor_id, session_id)
    newer = agent.hello().session_id
    with pytest.raises(StaleGeneration, match="newer session"):
        world.run(ownership.check, agent.hypervisor_id, session_id)
    world.run(ownership.check, agent.hypervisor_id, newer)

    world.run(turn.take, "sessions:nobody", "nobody", timedelta(seconds=-1))
    with pytest.raises(StaleGeneration, match="lost its claim"):
        world.run(ownership.check, agent.hypervisor_id, newer)


async def test_an_owner_that_lost_its_turn_comes_back_as_another(world: World) -> None:
    claim = ownership.Ownership(world.database, keep_seconds=0.01)
    await claim.start()
    try:
        first = claim.owner
        await world.database.run(turn.give_back, f"sessions:{first}", first)  # as if it had run out

        async def another() -> bool:
            return claim.owner != first

        await wait_until_async(another, 10, "another owner")
        assert await world.database.run(turn.lasts, f"sessions:{claim.owner}", claim.owner)
    finally:
        await claim.stop()
