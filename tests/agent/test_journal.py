"""The agent's memory: what is returned is on disk, whatever dies; numbers have no gaps; a damaged file is put aside."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import journal as journal_module
from agent import outbox
from agent.database import Database
from agent.errors import StaleGeneration
from agent.journal import Journal, open_journal
from agent.outbox import StoredEvent
from agent.records import Operation

NOW = datetime(2026, 11, 23, tzinfo=UTC)
WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from agent.journal import open_journal
from tests.agent.test_journal import operation

async def main():
    journal = open_journal(Path(sys.argv[1]), datetime.now(UTC))
    for number in range(100_000):
        one = await journal.take_run(operation(f"job-{number}"))
        one = await journal.accept(one, b"accepted")
        print(number, flush=True)
        await journal.finish(one, b"finished", unhealed=False)

asyncio.run(main())
"""


def operation(job_id: str = "job", attempt: int = 1, generation: int = 1) -> Operation:
    return Operation(
        job_id=job_id, attempt=attempt, generation=generation, epoch=1, command_id=f"run {job_id} {attempt}", verb="backup",
        storage_id="storage", server_id="server", domain_uuid="", backup_id="", workers=4, read_limit=0, upload_limit=0,
        receive_uptime=1.0, boot_id="boot", deadline_seconds=60.0,
    )  # fmt: skip


@pytest.mark.feature("N15")
async def test_a_command_is_known_from_its_record_on(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        assert not await journal.knows("run job 1")
        await journal.take_run(operation())

    with open_journal(tmp_path / "journal", NOW) as journal:
        assert await journal.knows("run job 1")
        assert await journal.operations() == [operation()]
        assert await journal.open_command_ids() == ["run job 1"]


@pytest.mark.feature("N15")
async def test_an_operation_goes_when_its_end_is_acknowledged_and_it_is_tidy(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        one = await journal.accept(await journal.take_run(operation()), b"a")
        one = await journal.finish(one, b"f", unhealed=True)

        assert await journal.acknowledge(1) == []
        assert await journal.acknowledge(2) == []
        assert [op.state for op in await journal.operations()] == ["finished"]
        assert [op.key for op in await journal.healed(one)] == [("job", 1)]
        assert await journal.operations() == []
        assert await journal.knows("run job 1")  # against a late second delivery
        assert await journal.open_command_ids() == []


async def test_an_older_generation_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        await journal.take_run(operation(generation=5))

        with pytest.raises(StaleGeneration):
            await journal.take_run(operation(attempt=2, generation=4))

        assert not await journal.knows("run job 2")


@pytest.mark.feature("N11")
async def test_a_new_journal_renumbers_what_is_kept(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        for number in range(5):
            await journal.reject(f"c{number}", f"j{number}", 1, f"body {number}".encode())
        await journal.acknowledge(2)
        before = await journal.position()

        after = await journal.restart(NOW)

        assert after.journal_id != before.journal_id
        assert (after.last_sequence, after.acknowledged) == (3, 0)
        events = await journal.events_after(0, 100, 1 << 20)
        assert [(event.sequence, event.body) for event in events] == [(1, b"body 2"), (2, b"body 3"), (3, b"body 4")]


@pytest.mark.parametrize(
    ("stored", "agrees"), [(3, False), (4, True), (9, True), (10, False)], ids=["lost", "known", "newest", "unknown"]
)
def test_a_controller_s_word_on_the_journal(stored: int, agrees: bool) -> None:
    assert outbox.agrees(outbox.Position("id", last_sequence=9, acknowledged=4), stored) is agrees


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.one_of(st.just("append"), st.integers(0, 12), st.just("restart")), max_size=30))
def test_numbers_have_no_gaps_whatever_happens(steps: list[object]) -> None:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    connection.executescript(outbox.SCHEMA)
    outbox.begin(connection, "first")
    for number, step in enumerate(steps):
        if step == "append":
            outbox.append(connection, "records", "job", 1, bytes([number]))
        elif step == "restart":
            outbox.restart(connection, f"journal {number}")
        else:
            assert isinstance(step, int)
            outbox.acknowledge(connection, min(step, outbox.position(connection).last_sequence))
        events = outbox.after(connection, 0, 100, 1 << 20)
        now = outbox.position(connection)
        assert [event.sequence for event in events] == list(range(now.acknowledged + 1, now.last_sequence + 1))
        bodies = [event.body for event in events]
        assert bodies == sorted(bodies)
    connection.close()


async def test_a_journal_set_back_is_noticed_although_its_numbers_were_given_out_again(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        await journal.reject("c1", "j1", 1, b"told")
    with open_journal(tmp_path / "journal", NOW) as journal:
        await journal.reject("c2", "j2", 1, b"added before the first Welcome")
        position = await journal.position()

        assert position.last_sequence == 2
        assert not journal.agrees(position, 2)  # whoever has a second event has it of another past
        await journal.restart(NOW)
        assert journal.agrees(await journal.position(), 0)
        assert journal.agrees(await journal.position(), 2)  # sent and stored since


async def test_batches_keep_their_limits(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        for number in range(6):
            await journal.reject(f"c{number}", f"j{number}", 1, bytes(100))

        assert len(await journal.events_after(0, 4, 1 << 20)) == 4
        assert len(await journal.events_after(0, 100, 350)) == 3
        assert len(await journal.events_after(0, 100, 10)) == 1  # one that is too large still has to go


async def everything(path: Path) -> tuple[list[StoredEvent], list[Operation]]:
    with open_journal(path, NOW) as journal:
        return await journal.events_after(0, 10_000_000, 1 << 30), await journal.operations()


@pytest.mark.parametrize("delay_lines", [1, 7, 40])
def test_killed_while_writing(tmp_path: Path, delay_lines: int) -> None:
    path = tmp_path / "journal"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        promised = [int(writer.stdout.readline()) for _ in range(delay_lines)]
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        rest, _ = writer.communicate()
    promised += [int(line) for line in rest.split(b"\n")[:-1]]

    events, operations = asyncio.run(everything(path))

    accepted = [event.job_id for event in events if event.kind == "accepted"]
    assert accepted[: len(promised)] == [f"job-{number}" for number in promised]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    finished = {event.job_id for event in events if event.kind == "finished"}
    assert {one.job_id for one in operations if one.state == "finished"} == finished
    assert set(accepted) - finished == {one.job_id for one in operations if one.state == "running"}


def aside(folder: Path) -> list[Path]:
    return list(folder.glob("journal.damaged-*"))


async def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"SQLite format 3\0" + os.urandom(8000))

    with open_journal(path, NOW) as journal:
        assert await journal.operations() == []

    assert aside(tmp_path)


async def fill(journal: Journal) -> None:
    for number in range(200):
        await journal.reject(f"d{number}", "job", 1, bytes(4000))


async def test_a_full_disk_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    database = Database(tmp_path / "journal", journal_module.SCHEMA)
    database.run_now(outbox.begin, "id")
    with Journal(database, outbox.Position("id", 0, 0)) as journal:
        await journal.take_run(operation("before"))
        await database.run(lambda connection: connection.execute("PRAGMA max_page_count = 20"))

        with pytest.raises(sqlite3.Error):
            await fill(journal)

        kept = await journal.events_after(0, 1000, 1 << 30)
        assert [event.sequence for event in kept] == list(range(1, len(kept) + 1))
        await journal.acknowledge(len(kept))
        await journal.accept(operation("before"), b"a")  # there is room again


async def test_one_failing_function_harms_no_other_of_its_group(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        await journal.take_run(operation("one", generation=2))

        outcomes = await asyncio.gather(
            journal.take_run(operation("two")),
            journal.take_run(operation("one", attempt=2)),
            journal.take_run(operation("three")),
            return_exceptions=True,
        )

        assert [type(outcome) for outcome in outcomes] == [Operation, StaleGeneration, Operation]
        assert [one.job_id for one in await journal.operations()] == ["one", "two", "three"]


async def test_the_loop_goes_on_while_the_disk_is_slow(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", NOW) as journal:
        turns = 0

        def slow(connection: sqlite3.Connection) -> None:
            connection.create_function("nap", 1, time.sleep)
            connection.execute("SELECT nap(0.2)").fetchone()

        working = asyncio.create_task(journal._database.run(slow))
        while not working.done():
            await asyncio.sleep(0.005)
            turns += 1

        assert turns >= 10


def test_subjects() -> None:
    assert operation().subjects == {"server server"}
    assert replace(operation(), domain_uuid="u").subjects == {"server server", "domain u"}
    assert replace(operation(), verb="verify").subjects == frozenset()


@pytest.mark.feature("N13")
async def test_a_journal_of_an_older_version_gets_the_columns_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    open_journal(path, NOW).close()
    connection = sqlite3.connect(path)
    for name in ("batch_id", "concurrency", "during_batch"):
        connection.execute(f"ALTER TABLE operations DROP COLUMN {name}")
    connection.execute(
        "INSERT INTO operations (job_id, attempt, generation, epoch, state, process) VALUES ('j', 1, 1, 1, 'running', '')"
    )
    connection.commit()
    connection.close()

    with open_journal(path, NOW) as journal:
        (operation,) = await journal.operations()

    assert (operation.batch_id, operation.concurrency, operation.during_batch) == ("", 1, False)
