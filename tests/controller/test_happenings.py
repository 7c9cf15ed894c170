"""The log of events on both databases: what is in it, in which order, and that a cursor loses and repeats nothing."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import events, happenings
from controller.db import models
from controller.db.database import Database
from controller.errors import CursorExpired
from controller.events import EventFilter
from tests.clock import START
from tests.controller.world import World
from tests.servers.postgres import Postgres

if TYPE_CHECKING:
    from controller.db.notes import Note

EVERYTHING = EventFilter()
ROOT = Path(__file__).parents[2]


def record(world: World, kind: str, **links: Any) -> None:
    world.run(happenings.record, kind, world.now(), **links)


def read(world: World, cursor: int = 0, wanted: EventFilter = EVERYTHING, limit: int = 100) -> list[str]:
    return [one.kind for one in world.run(events.read, wanted, cursor, limit).events]


@pytest.mark.feature("N6")
def test_what_was_rolled_back_never_happened_and_the_rest_is_in_order(world: World) -> None:
    heard: list[Note] = []
    world.database.subscribe(heard.extend)

    def act() -> None:
        happenings.record("a.first", world.now())
        try:
            with models.proxy.atomic():
                happenings.record("a.undone", world.now())
                raise KeyError
        except KeyError:
            happenings.record("a.second", world.now(), body={"number": 7, "text": "x"})

    def fail() -> None:
        happenings.record("a.lost", world.now())
        raise ValueError

    world.run(act)
    with pytest.raises(ValueError):
        world.run(fail)
    record(world, "a.third")

    found = world.run(events.read, EVERYTHING, 0, 100)
    assert [one.kind for one in found.events] == ["a.first", "a.second", "a.third"]
    assert found.events[1].facts == {"number": "7", "text": "x"}
    assert found.cursor == found.events[-1].sequence == world.run(events.newest)
    told = [one.value for one in heard if one.topic == "event"]
    assert told[-1] == found.cursor
    assert told == sorted(told)


@pytest.mark.parametrize("kind", ["", "job", "job.", ".x", "Job.x", "job.x y", "job.x.y", "a" * 40])
def test_what_is_no_kind_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no kind"):
        happenings.record(kind, START)


@pytest.mark.feature("N6")
def test_a_filter_selects_by_kind_thing_and_time(world: World) -> None:
    record(world, "job.failed", job_id="j1", server_id="s1")
    middle = world.now()
    record(world, "job.completed", job_id="j2", server_id="s2", storage_id="t1", hypervisor_id="h1")
    record(world, "jobs.other", schedule_id="d1", batch_id="b1")

    assert read(world, wanted=EventFilter(kinds=("job.",))) == ["job.failed", "job.completed"]
    assert read(world, wanted=EventFilter(kinds=("job.failed", "jobs."))) == ["job.failed", "jobs.other"]
    assert read(world, wanted=EventFilter(server_id="s1")) == ["job.failed"]
    assert read(world, wanted=EventFilter(server_id="s2", storage_id="t1", hypervisor_id="h1")) == ["job.completed"]
    assert read(world, wanted=EventFilter(schedule_id="d1", batch_id="b1")) == ["jobs.other"]
    assert read(world, wanted=EventFilter(job_id="j2", server_id="s1")) == []
    assert read(world, wanted=EventFilter(start_time=middle)) == ["job.completed", "jobs.other"]


@pytest.mark.feature("N6")
def test_a_filter_that_wants_nothing_moves_the_cursor_in_bounded_steps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SCAN_MAX", 4)
    for _ in range(10):
        record(world, "a.b")
    nothing, cursor, readings = EventFilter(kinds=("x.y",)), 0, 0
    while True:
        found = world.run(events.read, nothing, cursor, 100)
        assert found.cursor - cursor <= 4
        cursor, readings = found.cursor, readings + 1
        if not found.more:
            break
    assert (cursor, readings) == (world.run(events.newest), 3)


@pytest.mark.feature("N6", "G8")
def test_a_cursor_before_the_oldest_is_told_which_is_the_oldest(world: World) -> None:
    for number in range(5):
        record(world, "a.old" if number < 3 else "a.young")
        world.clock.advance(timedelta(days=1).total_seconds())
    first = world.run(events.read, EVERYTHING, 0, 1).cursor
    newest = world.run(events.newest)

    assert world.run(events.remove_before, world.now() - timedelta(days=2, hours=12), 100) == 3

    with pytest.raises(CursorExpired) as caught:
        world.run(events.read, EVERYTHING, first, 100)
    assert caught.value.facts == {"cursor": str(first), "oldest": str(newest - 1), "newest": str(newest)}
    assert read(world, newest - 2) == ["a.young", "a.young"]  # all that came after it is there
    assert read(world, 0) == ["a.young", "a.young"]
    with pytest.raises(CursorExpired):
        world.run(events.read, EVERYTHING, newest + 1, 100)  # of a database that was put back

    world.run(events.remove_before, world.now() + timedelta(days=1), 100)
    assert world.run(events.newest) == newest
    assert read(world, newest) == []


@contextmanager
def sqlite_world(folder: Path) -> Iterator[World]:
    world = World.open(folder)
    try:
        yield world
    finally:
        world.close()


STEP = st.one_of(
    st.tuples(st.just("record"), st.lists(st.booleans(), max_size=4)),
    st.tuples(st.just("read"), st.integers(1, 5)),
    st.tuples(st.just("remove"), st.integers(0, 12)),
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with sqlite_world(tmp_path_factory.mktemp("cursor") / "c") as world:
        yield world


@pytest.mark.feature("N6")
@given(steps=st.lists(STEP, max_size=25))
@settings(max_examples=60, deadline=None)
def test_a_reader_gets_each_event_once_and_in_order_or_is_told_of_the_loss(
    shelf: World, steps: list[tuple[str, Any]]
) -> None:
    """Whatever is recorded, rolled back, read and removed in between."""
    world = shelf
    world.run(lambda: [models.Event.delete().execute(), models.EventHorizon.delete().execute()])
    record(world, "a.start")
    cursor = world.run(events.newest)
    happened: list[str] = []
    seen: list[str] = []
    count = 0
    for step, value in steps:
        if step == "record":
            for good in value:
                count += 1
                body = {"number": str(count)}
                if good:
                    record(world, "a.b", body=body)
                    happened.append(str(count))
                else:
                    with pytest.raises(RuntimeError):
                        world.run(_record_and_fail, world.now(), body)
        elif step == "read":
            try:
                found = world.run(events.read, EVERYTHING, cursor, value)
            except CursorExpired as error:
                lost = happened.index(seen[-1]) + 1 if seen else 0
                assert happened[lost:], "told of a loss where nothing was lost"
                cursor = int(error.facts["oldest"]) - 1
                rest = world.run(events.read, EVERYTHING, cursor, 1000).events
                seen += happened[lost : len(happened) - len(rest)]  # what it must read anew elsewhere
                continue
            seen += [one.facts["number"] for one in found.events]
            cursor = found.cursor
        else:
            world.run(events.remove_before, world.now() + timedelta(days=1), value)
        assert seen == happened[: len(seen)]


def _record_and_fail(now: datetime, body: dict[str, Any]) -> None:
    happenings.record("a.b", now, body=body)
    raise RuntimeError


WRITER = """
import sys
from controller import happenings
from controller.clock import SystemClock
from controller.db.database import Database
database = Database.open(sys.argv[1])
for number in range(int(sys.argv[3])):
    def act(number=number):
        for part in range(3):
            happenings.record("a.b", SystemClock().now(), body={"writer": sys.argv[2], "number": number * 3 + part})
    database.call(act)
database.close()
"""


@pytest.mark.feature("N6")
def test_two_controllers_on_one_postgresql_never_put_an_event_behind_a_reader(postgres: Postgres) -> None:
    """Three processes: two that record as fast as they can, and a reader that must see no gap filled in later."""
    url = postgres.database()
    database = Database.open(url)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, str(number), "60"], cwd=ROOT) for number in range(2)
    ]
    seen: list[tuple[int, str, int]] = []
    cursor = 0
    try:
        while True:
            ended = all(one.poll() is not None for one in writers)
            found = database.call(events.read, EVERYTHING, cursor, 100)
            seen += [(one.sequence, one.facts["writer"], int(one.facts["number"])) for one in found.events]
            cursor = found.cursor
            if ended and not found.more:
                break
        whole = database.call(lambda: [row.sequence for row in models.Event.select().order_by(models.Event.sequence)])
    finally:
        for one in writers:
            one.kill()
            one.wait()
        database.close()
    assert [one.returncode for one in writers] == [0, 0]
    assert [sequence for sequence, _, _ in seen] == whole
    for writer in ("0", "1"):
        assert [number for _, who, number in seen if who == writer] == list(range(180))
    order = [who for _, who, _ in seen]
    assert order != sorted(order), "they did write at the same time"


def test_every_thing_that_events_tell_of_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "events.md").read_text()
    call = re.compile(r"""(?:happenings\.record|_event|_record|_change)\(\s*(?:[^"()]*,\s*)?f?"([a-z_]+)\.""")
    things = {one for path in (ROOT / "controller").rglob("*.py") for one in call.findall(path.read_text())}
    assert {"job", "backup", "hypervisor"} <= things
    assert {one for one in things if f"`{one}." not in manual} == set()
