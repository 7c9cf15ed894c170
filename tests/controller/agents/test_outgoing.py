"""The queue in front of a stream, and signs of life that are written together."""

import asyncio
from datetime import timedelta

import pytest

from clients.gen.backupmanager.agent.v1 import event_pb2, session_service_pb2
from controller import hypervisors
from controller.agents.outgoing import QUEUE_MAX, Outgoing
from controller.agents.pulse import Pulse, Sign
from tests.controller.world import World

Response = session_service_pb2.SessionResponse


def numbered(number: int) -> Response:
    return Response(event_receipt=event_pb2.EventReceipt(sequence=number))


async def test_what_was_put_before_the_end_is_still_read_in_order() -> None:
    queue = Outgoing()
    await queue.put(numbered(1))
    await queue.put(numbered(2))
    queue.close()
    assert [await queue.get(), await queue.get(), await queue.get()] == [numbered(1), numbered(2), None]


async def test_a_reader_that_waits_is_woken_by_a_message_and_by_the_end() -> None:
    queue = Outgoing()
    first = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    await queue.put(numbered(1))
    assert await first == numbered(1)
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    assert await second is None


async def test_all_who_put_wait_for_room_and_one_that_gives_up_takes_no_place() -> None:
    queue = Outgoing()
    for number in range(QUEUE_MAX):
        await queue.put(numbered(number))
    more = [asyncio.create_task(queue.put(numbered(1000 + number))) for number in range(3)]
    await asyncio.sleep(0)
    more[0].cancel()
    await asyncio.gather(more[0], return_exceptions=True)

    read = [await queue.get() for _ in range(QUEUE_MAX)]
    await asyncio.gather(*more[1:])

    assert read == [numbered(number) for number in range(QUEUE_MAX)]
    assert [await queue.get(), await queue.get()] == [numbered(1001), numbered(1002)]


async def test_a_stop_goes_on_where_the_database_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> None:
        raise OSError("the database is gone")

    pulse = Pulse(world.database)
    pulse.felt("h1", Sign(world.now(), None, 0.1, 1))
    monkeypatch.setattr(world.database, "run", gone)
    await pulse.stop()


@pytest.mark.feature("X16")
async def test_signs_of_life_are_written_soon_and_the_last_ones_at_the_stop(world: World) -> None:
    agents = [world.enroll("h1"), world.enroll("h2")]
    pulse, now = Pulse(world.database), world.now() + timedelta(seconds=7)

    for agent in agents:
        pulse.felt(agent.hypervisor_id, Sign(now - timedelta(seconds=5), None, 0.1, 1))
        pulse.felt(agent.hypervisor_id, Sign(now, timedelta(seconds=1), 0.5, 2))
    await pulse.stop()

    for agent in agents:
        found = world.run(hypervisors.find, agent.hypervisor_id, world.limits, now)
        kept = (found.last_contact_time, found.clock_offset, found.load, found.scratch_free_bytes)
        assert kept == (now, timedelta(seconds=1), 0.5, 2)
