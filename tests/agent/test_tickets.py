"""Restore tickets on a hypervisor: those that are over go by themselves, with a controller or without."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.tickets import remove_expired, revoke, sweep
from clients.gen.backupmanager.agent.v1 import command_pb2
from clients.gen.backupmanager.v1 import job_pb2
from engine import spec
from engine.errors import TicketRevoked
from engine.spec import LocalConfig, StorageSpec
from engine.ticket import LIFETIME_SECONDS_MAX, Ticket, load_ticket
from tests.agent.conftest import fresh_id, run_command
from tests.agent.scripted_controller import ScriptedController
from tests.clock import START, FakeClock
from tests.servers.agent import Agent
from tests.waiting import wait_until, wait_until_async

SERVER, BACKUP = "018f0000-0000-7000-8000-000000000002", "018f0000-0000-7000-8000-000000000001"
HOUR = timedelta(hours=1)


class HostClock(FakeClock):
    """One that an agent can be given."""

    def uptime(self) -> float:
        return (self.time - START).total_seconds()


def leave(folder: Path, name: str, created: datetime, lifetime: timedelta = HOUR) -> Path:
    storage = StorageSpec(BACKUP, SERVER, local=LocalConfig("/vault"))
    one = Ticket(created.isoformat(), (created + lifetime).isoformat(), storage, SERVER, BACKUP)
    return leave_text(folder, name, spec.dump(one), created)


def leave_text(folder: Path, name: str, text: str, written: datetime) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    os.utime(path, (written.timestamp(), written.timestamp()))
    return path


@pytest.mark.feature("M11")
def test_what_is_over_goes_and_the_rest_stays(tmp_path: Path) -> None:
    week = timedelta(seconds=LIFETIME_SECONDS_MAX)
    leave(tmp_path, "good.json", START)
    leave(tmp_path, "over.json", START - HOUR)
    leave(tmp_path, "future.json", START + HOUR)  # the clock was set back: it would live longer than was meant
    leave_text(tmp_path, "garbage.json", "{", START - HOUR)
    leave_text(tmp_path, "old.json", "{", START - week - HOUR)
    leave_text(tmp_path, ".half.json.01", '{"storage"', START - timedelta(minutes=1))
    leave_text(tmp_path, ".half.json.02", '{"storage"', START - HOUR)
    (tmp_path / "folder").mkdir()
    outside = leave_text(tmp_path / "folder", "outside", "{", START)
    link = tmp_path / "link.json"
    link.symlink_to(outside)
    os.utime(link, (START.timestamp(), START.timestamp()), follow_symlinks=False)

    assert sweep(tmp_path, START) == [".half.json.02", "future.json", "old.json", "over.json"]
    assert sweep(tmp_path, START) == []
    assert sweep(tmp_path, START + HOUR) == [".half.json.01", "good.json"]
    assert sweep(tmp_path / "nowhere", START) == []
    assert outside.exists()


@pytest.mark.feature("M11")
async def test_a_ticket_goes_when_its_time_has_come(tmp_path: Path) -> None:
    clock = HostClock()
    path = leave(tmp_path, "one.json", START)
    other = leave(tmp_path, "other.json", START, 2 * HOUR)
    keeping = asyncio.create_task(remove_expired(tmp_path, clock, 0.01))
    try:
        clock.advance(HOUR.total_seconds() - 1)
        await asyncio.sleep(0.1)  # several looks, none of which may remove it
        assert path.exists()
        clock.advance(1)

        async def gone() -> bool:
            return not path.exists()

        await wait_until_async(gone, 10, "the ticket's end")
        assert other.exists()
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.feature("M11")
def test_an_agent_without_a_controller_removes_what_is_over(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "agent")
    folder, now = agent.state_folder / "tickets", datetime.now(UTC)
    agent.state_folder.mkdir(mode=0o700)
    over, good = leave(folder, "over.json", now - 2 * HOUR), leave(folder, "good.json", now)

    with agent:
        wait_until(lambda: not over.exists(), 20, "the ticket's end")
        assert good.exists()
        assert "a restore ticket expired and was removed" in agent.log


@pytest.mark.feature("M11")
def test_no_ticket_is_left_for_a_backup_that_is_not_there(tmp_path: Path, controller: ScriptedController) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    with Agent(
        tmp_path / "agent",
        controller=controller.address,
        token=controller.enrollment_token,
        libvirt_uri="test:///default",
    ) as agent:
        ids = {"repository_id": SERVER, "installation_id": BACKUP}
        made = run_command(storage, verb="test")
        wanted = run_command(storage, verb="ticket")
        endless = run_command(storage, verb="ticket")
        for command in (made, wanted, endless):
            for name, value in ids.items():
                setattr(command.run.storage, name, value)
        for command in (wanted, endless):
            command.run.ticket.server_id, command.run.ticket.backup_id = SERVER, BACKUP
        wanted.run.ticket.lifetime.FromSeconds(3600)
        endless.run.ticket.lifetime.FromSeconds(LIFETIME_SECONDS_MAX + 1)
        controller.send(made)
        controller.wait_event(made.job_id, "finished")

        controller.send(wanted)
        controller.send(endless)

        failed = controller.wait_event(wanted.job_id, "finished").finished
        assert (failed.state, failed.failure.reason) == (job_pb2.JOB_STATE_FAILED, "BACKUP_NOT_FOUND"), agent.log
        refused = controller.wait_event(endless.job_id, "rejected").rejected
        assert refused.failure.reason == "INVALID_FIELD"
        assert list((agent.state_folder / "tickets").iterdir()) == []
        assert (agent.state_folder / "tickets").stat().st_mode & 0o777 == 0o700


@pytest.mark.feature("M11")
def test_a_revoked_ticket_leaves_a_word_without_secrets_for_a_week(tmp_path: Path) -> None:
    path, other = leave(tmp_path, "one.json", START), tmp_path / "other.json"
    secret = path.read_bytes()
    for file in (path, path, other):  # twice is as good as once, and where none is nothing is done
        revoke(file, START)
    assert not other.exists()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TicketRevoked) as caught:
        load_ticket(path, START)
    assert caught.value.facts["revoke_time"] == START.isoformat()
    assert b"/vault" in secret
    assert b"/vault" not in path.read_bytes()
    os.utime(path, (START.timestamp(), START.timestamp()))
    assert sweep(tmp_path, START + timedelta(seconds=LIFETIME_SECONDS_MAX)) == []
    assert sweep(tmp_path, START + timedelta(seconds=LIFETIME_SECONDS_MAX + 1)) == ["one.json"]


@pytest.mark.feature("M11")
def test_what_is_no_ticket_any_more_is_removed_when_it_is_revoked_and_a_link_is_not_followed(tmp_path: Path) -> None:
    broken, secret, link = tmp_path / "broken.json", tmp_path / "kept", tmp_path / "link.json"
    broken.write_text('{"storage": ')
    secret.write_text("somebody's own")
    link.symlink_to(secret)
    revoke(broken, START)
    with pytest.raises(OSError):
        revoke(link, START)
    assert not broken.exists()
    assert secret.read_text() == "somebody's own"


@pytest.mark.feature("M11")
def test_an_agent_takes_a_ticket_back_and_says_that_it_is_gone(tmp_path: Path, controller: ScriptedController) -> None:
    with Agent(
        tmp_path / "agent",
        controller=controller.address,
        token=controller.enrollment_token,
        libvirt_uri="test:///default",
    ) as agent:
        job_id = fresh_id()
        path = leave(agent.state_folder / "tickets", f"{job_id}.json", datetime.now(UTC))
        command = command_pb2.Command(command_id=fresh_id(), job_id=job_id, attempt=1)
        command.revoke_ticket.SetInParent()
        escape = command_pb2.Command(command_id=fresh_id(), job_id="../identity", attempt=1)
        escape.revoke_ticket.SetInParent()
        controller.send(escape)
        controller.send(command)
        controller.wait_receipt(command.command_id)
        assert controller.gone == [command.command_id]
        with pytest.raises(TicketRevoked):
            load_ticket(path, datetime.now(UTC))
        assert (agent.state_folder / "identity.json").exists()
        assert escape.command_id not in controller.receipts
