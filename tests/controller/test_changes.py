"""Waking: no change is missed, nobody is woken for another's, and closing wakes all."""

import asyncio

from controller.changes import Changes
from controller.db.notes import Note, note
from tests.controller.world import World


async def test_a_change_between_the_read_and_the_wait_is_not_missed() -> None:
    changes = Changes()
    with changes.watch("j1") as watch:
        changes.publish([Note("job", "j1", 5)])  # the reader has seen version 4

        assert await watch.wait(4, 5)
        assert not await watch.wait(5, 0.01)


async def test_a_waiter_is_woken_by_its_own_job_only() -> None:
    changes = Changes()
    with changes.watch("j1") as first, changes.watch("j1") as also, changes.watch("j2") as other:
        waiting = [asyncio.create_task(one.wait(0, 0.2)) for one in (first, also, other)]
        await asyncio.sleep(0)
        changes.publish([Note("job", "j1", 1), Note("outbox", "j2", 1)])

        assert await asyncio.gather(*waiting) == [True, True, False]


async def test_closing_wakes_everybody() -> None:
    changes = Changes()
    with changes.watch("j1") as watch:
        waiting = asyncio.create_task(watch.wait(0, 60))
        await asyncio.sleep(0)
        changes.close()

        assert await waiting is False
        assert changes.closed
        assert not await watch.wait(0, 60)


async def test_commits_are_told_across_threads(world: World) -> None:
    changes = Changes()
    world.database.subscribe(changes.publish)
    came = asyncio.Event()
    with changes.watch("j1") as watch, changes.hear_outbox("h1", came.set):
        await world.database.run(note, "job", "j1", 3)
        await world.database.run(note, "outbox", "h1", 9)

        assert await watch.wait(2, 5)
        await asyncio.wait_for(came.wait(), 5)
