"""Statements of a batch's start and of its commands: as many for thirty servers as for three, with the same outcome."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from controller import batches, leases
from controller.agents.deliveries import take
from controller.batches import Batch
from controller.cycle import batch_dispatch
from controller.db import models
from controller.db.secrets import Vault
from tests.controller.cycle.test_batches import House, furnish
from tests.controller.world import World


@contextmanager
def counting(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the statements that the database gets inside the block."""
    found: list[str] = []
    database: Any = models.proxy.obj
    execute = database.execute_sql

    def execute_sql(sql: str, *values: Any, **options: Any) -> Any:
        found.append(sql)
        return execute(sql, *values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(database, "execute_sql", execute_sql)
        yield found


def fire(house: House) -> Batch:
    world = house.world
    made = world.run(batch_dispatch.fire, house.schedule.schedule_id, world.limits, world.now())
    return world.run(batches.get, made)


@pytest.mark.feature("X1", "X12", "X13")
def test_starting_a_batch_takes_as_many_statements_for_thirty_servers_as_for_three(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = furnish(world, "few", 3), furnish(world, "many", 30)
    with counting(world, monkeypatch) as small:
        first = fire(few)
    with counting(world, monkeypatch) as large:
        second = fire(many)

    assert len(large) <= len(small) < 70
    assert {job.state for job in few.jobs(first).values()} == {"dispatched"}
    for job in many.jobs(second).values():
        assert world.run(leases.holders, leases.server_resource(job.server_id)) == [job.job_id]
        assert world.commands_of(job) == ["run"]
        assert [one.kind for one in world.run(_events, job.job_id)] == ["job.created", "job.dispatched"]


def _events(job_id: str) -> list[models.Event]:
    row = models.Event
    return list(row.select().where(row.job_id == job_id).order_by(row.sequence))


@pytest.mark.feature("X1", "N16")
def test_secrets_are_opened_once_for_all_commands_of_a_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = furnish(world, "few", 3), furnish(world, "many", 30)
    counts = []
    for house in (few, many):
        fire(house)
        opened: list[object] = []
        open_box = Vault.open

        def noted(self: Vault, *what: Any, _seen: list[object] = opened, _open: Any = open_box) -> Any:
            _seen.append(what)
            return _open(self, *what)

        session_id = house.agent.hello().session_id
        with monkeypatch.context() as patch, counting(world, monkeypatch) as statements:
            patch.setattr(Vault, "open", noted)
            commands = world.run(
                take, house.agent.hypervisor_id, session_id, frozenset(), world.vault, world.limits, world.now()
            ).commands
        assert len(commands) == len(house.servers)
        assert [one.run.batch.position for one in commands] == list(range(len(house.servers)))
        assert {one.run.batch.job_count for one in commands} == {len(house.servers)}
        counts.append((len(statements), len(opened)))
    assert counts[0] == counts[1]


@pytest.mark.feature("S25")
def test_a_storage_that_a_batch_was_sent_to_is_known_to_be_used(world: World) -> None:
    house = furnish(world, count=2)

    def use_time() -> Any:
        return models.Storage.get(models.Storage.storage_id == house.storage.storage_id).use_time

    assert world.run(use_time) is None
    fire(house)
    assert world.run(use_time) is not None


@pytest.mark.feature("X1", "X6")
def test_a_server_whose_chain_is_taken_is_left_out_and_gives_back_what_it_had(world: World) -> None:
    house = furnish(world, count=3)
    for name, server in house.servers.items():
        house.agent.back_up(server, house.storage, f"chain-{name}")
    chain = leases.chain_resource(f"{house.servers['h1-1'].server_id}/chain-h1-1")
    world.run(leases.claim, chain, "somebody")
    fire(house)

    found = house.jobs(house.batch())
    assert {name: job.state for name, job in found.items()} == {
        "h1-0": "dispatched",
        "h1-1": "skipped",
        "h1-2": "dispatched",
    }
    assert world.run(leases.holders, leases.server_resource(found["h1-1"].server_id)) == []
    assert world.run(leases.holders, chain) == ["somebody"]
    house.run(house.batch())
    assert world.run(batches.get, house.batch().batch_id).state == "completed_with_warnings"
    assert world.run(lambda: [one.job_id for one in models.LeaseHold.select()]) == ["somebody"]
