"""Commands and turns when something ends in the middle: a session, or the care for an operation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent import supervisor as supervising
from agent.clock import SystemClock
from agent.commands import Commands
from agent.config import Config
from agent.host import Host
from agent.journal import open_journal
from agent.operation import Runner
from agent.records import Operation
from agent.supervisor import Supervisor
from agent.telemetry import Feed
from clients.gen.backupmanager.agent.v1 import command_pb2
from tests.agent.conftest import fresh_id, run_command
from tests.waiting import wait_until_async


class NoLeases:
    async def check_lease(self, _operation: Operation) -> bool | None:
        return None


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    config = Config(state_folder=tmp_path / "state", run_folder=tmp_path / "run", scratch_folder=tmp_path / "scratch")
    config.operations_folder.mkdir(parents=True)
    with open_journal(config.journal_file, datetime.now(UTC)) as journal:
        yield Host(config, SystemClock(), journal, Feed(asyncio.Event()), "boot", "host")


@pytest.fixture
async def supervisor(host: Host) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(host, NoLeases())
    yield supervisor
    await supervisor.stop()


async def until(condition: Callable[[], Any], what: str) -> None:
    async def holds() -> bool:
        return bool(condition())

    await wait_until_async(holds, 10, what)


@pytest.mark.feature("N7", "N15")
async def test_a_session_that_ends_while_a_command_is_written_does_not_lose_it(
    host: Host, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Operation] = []

    async def submit(operation: Operation, _specification: object) -> None:
        submitted.append(operation)

    writing, go_on = asyncio.Event(), asyncio.Event()
    take_run = host.journal.take_run

    async def slow(operation: Operation) -> Operation:
        writing.set()
        await go_on.wait()
        return await take_run(operation)

    monkeypatch.setattr(supervisor, "submit", submit)
    monkeypatch.setattr(host.journal, "take_run", slow)
    commands, command = Commands(host, supervisor), run_command(tmp_path)
    session = asyncio.create_task(commands.take(command))
    await writing.wait()

    session.cancel()
    await asyncio.gather(session, return_exceptions=True)
    go_on.set()
    await commands.settle()

    assert [one.job_id for one in submitted] == [command.job_id]
    assert (host.config.operations_folder / submitted[0].folder_name / "spec.json").exists()
    assert await commands.take(command)
    assert len(submitted) == 1


async def test_a_journal_that_is_full_still_takes_a_cancel(
    host: Host, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def overfull() -> bool:
        return True

    monkeypatch.setattr(host.journal, "overfull", overfull)
    commands, run = Commands(host, supervisor), run_command(tmp_path)
    cancel = command_pb2.Command(command_id=fresh_id(), job_id=run.job_id, attempt=1, generation=1)
    cancel.cancel.SetInParent()

    assert not await commands.take(run)
    assert await commands.take(cancel)


@pytest.mark.feature("N15")
async def test_nobody_begins_beside_a_process_whose_care_failed(
    host: Host, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Operation(
        "job-1", 1, 1, 1, "c1", "backup", "s", "server", "", "b", 1, 0, 0, 0.0, "boot", 60.0, state="running"
    )
    calls: list[str] = []
    process_gone = asyncio.Event()

    async def see_through(runner: Runner, rivals: list[Runner]) -> None:
        job_id = runner.operation.job_id
        calls.append(job_id)
        if calls == ["job-1"]:
            raise RuntimeError("a fault of ours")
        if job_id == "job-1":
            await process_gone.wait()
            return
        for rival in rivals:
            await rival.clear.wait()
        calls.append(f"{job_id} begins")

    async def find(_job_id: str, _attempt: int) -> Operation:
        return first

    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "_see_through", see_through)
    monkeypatch.setattr(host.journal, "find", find)
    supervisor._take_up(first, None)
    supervisor._take_up(replace(first, job_id="job-2", command_id="c2"), None)

    await until(lambda: calls.count("job-1") == 2, "the care to begin anew")
    for _ in range(20):
        await asyncio.sleep(0)
    assert "job-2 begins" not in calls
    process_gone.set()
    await until(lambda: "job-2 begins" in calls, "the next one's turn")
