"""The controller is lost, and made again of its bundle: by hand as a person would, and on the catalog's side."""

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2, system_service_pb2
from controller import backups, bundle, installation, rescue, servers, storages
from controller.config import Settings
from controller.db import models, secrets
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import CannotStart, StorageUnreconciled
from controller.security.authority import Authority
from tests.controller.services.api import Api
from tests.controller.world import Agent, World, record_of
from tests.servers.controller import Controller

if TYPE_CHECKING:
    from controller.jobs import Job


def settings_of(world: World) -> Settings:
    return Settings(state_folder=world.folder, database=world.url)


def revived(world: World, folder: Path, data: Path, key: str) -> World:
    """Lose a world, and return the one that is made of its bundle, on a new SQLite."""
    world.close()
    settings = Settings(state_folder=folder)
    made = rescue.restore(settings, data, bundle.parse_key(key))
    assert made.epoch == 2
    vault = Vault.load(settings.master_key_file)
    return World(folder, Database.open(settings.database_url), vault, world.clock, url=settings.database_url)


@pytest.mark.feature("N11")
@pytest.mark.feature("N10")
def test_a_lost_database_is_rebuilt_from_the_bundle_and_the_storage(world: World, tmp_path: Path) -> None:
    agent = world.enroll("kvm1")
    server, storage = world.server(agent, "web"), world.storage()
    Authority.create(settings_of(world).authority_folder, (), world.now())
    written = rescue.backup(settings_of(world), tmp_path / "bundle")
    assert written.key
    made: list[Job] = []
    for _ in range(2):  # after the bundle was written
        job = agent.accept(world.backup(server, storage))
        made.append(agent.finish(job, record=record_of(job, "c1", [one.backup_id for one in made])))

    after = revived(world, tmp_path / "new", tmp_path / "bundle", written.key)
    try:
        again = Agent(after, agent.hypervisor_id, agent.serial, agent.journal_id, agent.sequence, agent.domains)
        welcome = again.hello(acknowledged_sequence=agent.sequence)
        assert (welcome.epoch, welcome.stored_sequence) == (2, 0)
        assert after.run(installation.get).epoch == 2, "a restored controller is not set back by what it cannot know"
        again.journal_id, again.sequence = "journal-2", 0
        again.heartbeat()
        again.report()
        assert after.run(servers.find, server.server_id).external_id == "panel-web"
        assert after.run(storages.find, "nas").repository_id == storage.repository_id
        opened = after.run(secrets.open_all, after.vault, "storage", storage.storage_id)
        assert opened == {"sftp_private_key": "PEM"}

        reindex = again.accept(after.reindex(after.run(storages.find, "nas"), again))
        for number, one in enumerate(made):
            again.find(reindex, record_of(one, "c1", [earlier.backup_id for earlier in made[:number]]))
        newest = made[-1].backup_id
        with pytest.raises(StorageUnreconciled):
            after.delete([newest])
        again.finish(reindex, result={"reindex": {"backup_count": "2"}})

        assert [after.run(backups.get, one.backup_id).state for one in made] == ["available", "available"]
        assert after.run(backups.needs, newest) == [one.backup_id for one in made]
        assert after.delete([newest]).type == "delete"
    finally:
        after.close()


@pytest.mark.feature("N11")
def test_a_bundle_opens_with_its_key_alone_and_only_into_an_empty_place(world: World, tmp_path: Path) -> None:
    world.storage()
    settings, file = settings_of(world), tmp_path / "bundle"
    Authority.create(settings.authority_folder, (), world.now())
    first = rescue.backup(settings, file)
    assert rescue.backup(settings, file).key == "", "the key is shown once"
    data = file.read_bytes()
    assert data.startswith(bundle.HEADER)
    assert file.stat().st_mode & 0o777 == 0o600
    for secret in (b"PEM", b"PRIVATE KEY", settings.master_key_file.read_bytes().strip(), b"storage_id"):
        assert secret not in data
    key = bundle.parse_key(first.key)
    elsewhere = Settings(state_folder=tmp_path / "elsewhere")
    for broken, used in ((data, b"x" * 32), (data[:-1], key), (data[:60] + b"\0" + data[61:], key), (b"no", key)):
        file.write_bytes(broken)
        with pytest.raises(CannotStart):
            rescue.restore(elsewhere, file, used)
    assert not elsewhere.state_folder.exists()
    file.write_bytes(data)
    with pytest.raises(CannotStart, match="is there already"):
        rescue.restore(settings, file, key)
    second = rescue.backup(settings, file, new_key=True)
    assert second.key not in {"", first.key}
    with pytest.raises(CannotStart, match="does not open"):
        rescue.restore(elsewhere, file, key)


@pytest.mark.feature("N11")
def test_a_person_brings_a_lost_controller_back(tmp_path: Path) -> None:
    with Controller(tmp_path / "c") as controller:

        async def make() -> storage_pb2.Storage:
            async with controller.channel() as channel:
                local = storage_pb2.LocalConfig(path="/srv")
                request = storage_service_pb2.CreateStorageRequest(name="disk", local=local, allow_local=True)
                return (await Api(channel).storages.CreateStorage(request)).storage

        async def look() -> tuple[storage_pb2.Storage, str]:
            async with controller.channel() as channel:
                api = Api(channel)
                version = await api.system.GetVersion(system_service_pb2.GetVersionRequest())
                request = storage_service_pb2.GetStorageRequest(storage_id="disk")
                return (await api.storages.GetStorage(request)).storage, version.token_name

        made = asyncio.run(make())
        file, key_file = tmp_path / "bundle", tmp_path / "key"
        said = controller.command("backup", "--to", str(file))  # while it serves
        key_file.write_text(said.split("recovery key: ")[1].splitlines()[0])
        assert "recovery key" not in controller.command("backup", "--to", str(file))
        assert controller.stop() == 0
        shutil.rmtree(controller.state)

        told = controller.command("restore", str(file), "--key-file", str(key_file))
        assert f"authority: {controller.fingerprint}" in told
        assert "to reconcile: disk" in told
        controller.start()

        found, token_name = asyncio.run(look())
        assert (found.storage_id, found.repository_id) == (made.storage_id, made.repository_id)
        assert token_name == "admin"


@pytest.mark.feature("N11")
def test_every_table_is_in_the_bundle_or_left_out_on_purpose() -> None:
    left_out = {
        *(
            "backup",
            "backup_disk",
            "backup_need",
            "backup_total",
            "storage_total",
            "unprotected_server",
        ),  # the storages have them
        *("domain", "hypervisor_presence", "storage_check", "storage_health"),  # agents say it again
        *("job", "job_log", "batch", "turn", "lease", "lease_hold", "slot", "server_failure"),  # lost with the epoch
        *("outbox_command", "agent_journal", "agent_event", "session_owner"),
        *("event", "event_horizon", "event_pending", "webhook_delivery", "system_log", "audit"),  # what was
        *("prune_candidate", "prune_round", "purge", "reconciliation"),  # decided anew, or by a person
        *("bundle", "bundle_part"),  # a restored controller writes its own
        *("enrollment_token", "ticket"),  # short-lived; a ticket's file ends by itself on its hypervisor
    }
    kept = {rescue._name(table) for table in rescue.TABLES}
    assert {rescue._name(table) for table in models.ALL} == kept | left_out
