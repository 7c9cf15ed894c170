"""Backups over the wire: from the order to the record, previews and what they confirm, refusals by reason."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.agent.v1 import command_pb2, event_pb2
from clients.gen.backupmanager.v1 import (
    backup_pb2,
    backup_service_pb2,
    disk_pb2,
    job_pb2,
    job_service_pb2,
    overview_service_pb2,
    overview_service_pb2_grpc,
    server_pb2,
    storage_pb2,
    storage_service_pb2,
)
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused
from tests.servers.controller import Controller
from tests.servers.station import Session, Station, domain

START = backup_service_pb2.StartBackupRequest
NOBODY = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@dataclass
class House:
    """A server on a connected hypervisor, and a storage."""

    api: Api
    station: Station
    session: Session
    server: server_pb2.Server
    storage: storage_pb2.Storage

    async def start(self, **fields: Any) -> str:
        request = START(**{"server_id": self.server.server_id, "storage_id": self.storage.name, **fields})
        return (await self.api.backups.StartBackup(request)).job_id

    async def back_up(self, parent: str = "") -> backup_pb2.Backup:
        """Make a backup of vda and vdb, as the hypervisor's word alone: full, or incremental upon `parent`."""
        job_id = await self.start()
        command = await self.session.command()
        await self.session.accept(command)
        record = self.record(command, parent)
        await self.session.finish(
            command,
            job_pb2.JOB_STATE_COMPLETED,
            record=record,
            result=job_pb2.JobResult(
                backup=job_pb2.BackupResult(backup_id=record.backup.backup_id, disks=record.backup.disks)
            ),
        )
        assert (await self.api.ended(job_id)).state == job_pb2.JOB_STATE_COMPLETED
        return (
            await self.api.backups.GetBackup(backup_service_pb2.GetBackupRequest(backup_id=record.backup.backup_id))
        ).backup

    def record(self, command: command_pb2.Command, parent: str) -> event_pb2.BackupRecord:
        work = command.run.backup
        kind = disk_pb2.BACKUP_TYPE_INCREMENTAL if parent else disk_pb2.BACKUP_TYPE_FULL
        disks = [
            disk_pb2.DiskBackup(
                disk=name,
                type=kind,
                chain_id=str(uuid.uuid5(uuid.UUID(self.server.server_id), name)),
                parent_backup_id=parent,
                size_bytes=1 << 30,
                data_bytes=1 << 20,
                stored_bytes=1 << 19,
                sha256="ab" * 32,
            )
            for name in ("vda", "vdb")
        ]
        backup = backup_pb2.Backup(
            backup_id=work.backup_id,
            server_id=work.server_id,
            storage_id=command.run.storage.storage_id,
            job_id=command.job_id,
            create_time=work.create_time,
            state=backup_pb2.BACKUP_STATE_AVAILABLE,
            disks=disks,
            consistency=disk_pb2.CONSISTENCY_REACHED_FROZEN,
            stored_bytes=1 << 20,
            path=f"servers/{work.server_id}/{work.backup_id}",
            domain_name="vm",
        )
        needed = [parent, work.backup_id] if parent else [work.backup_id]
        return event_pb2.BackupRecord(
            backup=backup, manifest_digest="cd" * 32, domain_uuid=work.domain_uuid, needed_backup_ids=needed
        )

    async def switch(self, **fields: Any) -> None:
        """Switch a toggle of the storage."""
        update = storage_service_pb2.UpdateStorageRequest(
            storage=storage_pb2.Storage(storage_id=self.storage.storage_id, **fields)
        )
        update.update_mask.paths.extend(fields)
        await self.api.storages.UpdateStorage(update)

    async def preview_restore(self, **fields: Any) -> backup_service_pb2.PreviewRestoreResponse:
        return await self.api.backups.PreviewRestore(backup_service_pb2.PreviewRestoreRequest(**fields))

    async def preview_delete(self, *backup_ids: str) -> backup_service_pb2.PreviewDeleteResponse:
        return await self.api.backups.PreviewDelete(backup_service_pb2.PreviewDeleteRequest(backup_ids=backup_ids))


@pytest.fixture
async def house(api: Api, controller: Controller) -> AsyncIterator[House]:
    station = await Station.enroll(controller, fresh("hv"))
    one = domain(fresh("vm"), "vda", "vdb")
    async with station.session() as session:
        await session.report([one])
        server = await api.make_server(station.name, domain_uuid=one.domain_uuid)
        yield House(api, station, session, server, await api.make_storage())


@pytest.mark.feature("M8", "M14")
async def test_a_backup_is_ordered_made_and_recorded(house: House) -> None:
    job_id = await house.start(
        type=disk_pb2.BACKUP_TYPE_FULL, consistency=disk_pb2.CONSISTENCY_MODE_FREEZE, disks=["vdb", "vda", "vdb"]
    )
    command = await house.session.command()
    work = command.run.backup
    assert (work.server_id, work.domain_uuid) == (house.server.server_id, house.server.domain_uuid)
    assert (work.type, work.consistency) == (disk_pb2.BACKUP_TYPE_FULL, disk_pb2.CONSISTENCY_MODE_FREEZE)
    assert list(work.disks) == ["vdb", "vda"]
    await house.session.accept(command)
    await house.session.finish(command, job_pb2.JOB_STATE_COMPLETED, record=house.record(command, ""))
    job = await house.api.ended(job_id)
    assert job.backup_id == work.backup_id
    backup = (await house.api.backups.GetBackup(backup_service_pb2.GetBackupRequest(backup_id=job.backup_id))).backup
    assert backup.state == backup_pb2.BACKUP_STATE_AVAILABLE
    assert [disk.disk for disk in backup.disks] == ["vda", "vdb"]
    assert backup.consistency == disk_pb2.CONSISTENCY_REACHED_FROZEN


@pytest.mark.feature("E5")
async def test_a_server_that_is_busy_names_the_job(house: House) -> None:
    job_id = await house.start()
    found = await refusal(house.start())
    assert (found.reason, found.status) == ("VM_BUSY", "FAILED_PRECONDITION")
    assert found.facts["job_id"] == job_id


@pytest.mark.feature("S21", "S22")
async def test_a_storage_that_is_read_only_or_disabled_refuses_what_writes(house: House) -> None:
    backup = await house.back_up()
    preview = await house.preview_delete(backup.backup_id)
    delete = backup_service_pb2.StartDeleteRequest(backup_ids=[backup.backup_id], confirmation=preview.confirmation)
    await house.switch(read_only=True)
    assert await refused(house.start()) == "STORAGE_READ_ONLY"
    assert await refused(house.api.backups.StartDelete(delete)) == "STORAGE_READ_ONLY"
    await house.switch(enabled=False)
    assert await refused(house.start()) == "STORAGE_DISABLED"
    verify = backup_service_pb2.StartVerifyRequest(backup_id=backup.backup_id)
    assert await refused(house.api.backups.StartVerify(verify)) == "STORAGE_DISABLED"


@pytest.mark.feature("S0", "S25")
async def test_a_storage_that_holds_backups_keeps_its_place_its_key_and_itself(house: House) -> None:
    await house.back_up()
    storage = (
        await house.api.storages.GetStorage(storage_service_pb2.GetStorageRequest(storage_id=house.storage.storage_id))
    ).storage
    assert (storage.backup_count, storage.stored_bytes) == (1, 1 << 20)
    update = storage_service_pb2.UpdateStorageRequest
    moved = update(storage=storage)
    moved.storage.local.path = "/elsewhere"
    moved.update_mask.paths.append("local")
    assert await refused(house.api.storages.UpdateStorage(moved)) == "STORAGE_IMMUTABLE"
    sealed = update(storage=storage, secrets=storage_service_pb2.StorageSecrets(encryption_passphrase="long enough"))
    sealed.storage.encryption.enabled = True
    sealed.update_mask.paths.append("encryption.enabled")
    assert await refused(house.api.storages.UpdateStorage(sealed)) == "ENCRYPTION_IMMUTABLE"
    found = await refusal(
        house.api.storages.DeleteStorage(storage_service_pb2.DeleteStorageRequest(storage_id=storage.name))
    )
    assert (found.reason, found.facts["backup_count"]) == ("STORAGE_IN_USE", "1")


@pytest.mark.feature("M15")
async def test_a_restore_is_previewed_confirmed_and_started(house: House) -> None:
    full = await house.back_up()
    last = await house.back_up(full.backup_id)
    preview = await house.preview_restore(server_id=house.server.name)
    assert preview.backup == last
    assert list(preview.chain_backup_ids) == [full.backup_id, last.backup_id]
    assert list(preview.disks) == ["vda", "vdb"]
    assert preview.stops_server
    request = backup_service_pb2.StartRestoreRequest(
        backup_id=last.backup_id, confirmation=preview.confirmation, request_id=str(uuid.uuid4())
    )
    job_id = (await house.api.backups.StartRestore(request)).job_id
    assert (await house.api.backups.StartRestore(request)).job_id == job_id
    command = await house.session.command()
    assert command.run.restore.backup_id == last.backup_id
    assert command.run.restore.manifest_digest == "cd" * 32


@pytest.mark.feature("M15")
async def test_a_confirmation_is_for_what_was_shown_and_nothing_else(house: House) -> None:
    full = await house.back_up()
    shown = await house.preview_restore(backup_id=full.backup_id, disks=["vda"])
    assert list(shown.disks) == ["vda"]
    start = backup_service_pb2.StartRestoreRequest
    for request in (
        start(backup_id=full.backup_id, confirmation=shown.confirmation),
        start(backup_id=full.backup_id, disks=["vda"], target_folder="/x", confirmation=shown.confirmation),
        start(backup_id=full.backup_id, disks=["vda"], confirmation="made up"),
    ):
        found = await refusal(house.api.backups.StartRestore(request))
        assert (found.reason, found.status) == ("CONFIRMATION_STALE", "FAILED_PRECONDITION")
    missing = start(backup_id=full.backup_id, disks=["vda"])
    assert await field_refused(house.api.backups.StartRestore(missing)) == "confirmation"


async def test_a_restore_to_files_stops_nobody(house: House) -> None:
    full = await house.back_up()
    preview = await house.preview_restore(backup_id=full.backup_id, target_folder="/restore//here/")
    assert not preview.stops_server
    for folder in ("relative", "/a/../b"):
        assert await field_refused(house.preview_restore(backup_id=full.backup_id, target_folder=folder)) == (
            "target_folder"
        )


async def test_a_restore_of_what_is_not_there_is_refused(house: House) -> None:
    assert await field_refused(house.preview_restore()) == "backup_id"
    found = await refusal(house.preview_restore(backup_id=NOBODY))
    assert (found.reason, found.status) == ("BACKUP_NOT_FOUND", "NOT_FOUND")
    assert await refused(house.preview_restore(server_id=house.server.server_id)) == "BACKUP_NOT_FOUND"
    assert await refused(house.preview_restore(server_id="nobody")) == "SERVER_NOT_FOUND"
    full = await house.back_up()
    found = await refusal(house.preview_restore(backup_id=full.backup_id, disks=["vdz"]))
    assert (found.reason, found.status, found.facts["disk"]) == ("DISK_NOT_FOUND", "NOT_FOUND", "vdz")
    assert await field_refused(house.preview_restore(backup_id=full.backup_id, disks=["../x"])) == "disks"


@pytest.mark.feature("M12")
async def test_a_deletion_shows_all_that_goes_and_does_that(house: House) -> None:
    full = await house.back_up()
    last = await house.back_up(full.backup_id)
    preview = await house.preview_delete(full.backup_id)
    assert {one.backup_id for one in preview.backups} == {full.backup_id, last.backup_id}
    assert preview.stored_bytes == 2 << 20
    start = backup_service_pb2.StartDeleteRequest
    assert (
        await refused(
            house.api.backups.StartDelete(start(backup_ids=[last.backup_id], confirmation=preview.confirmation))
        )
        == "CONFIRMATION_STALE"
    )
    request = start(backup_ids=[full.backup_id], confirmation=preview.confirmation)
    job_id = (await house.api.backups.StartDelete(request)).job_id
    command = await house.session.command()
    assert set(command.run.delete.backup_ids) == {full.backup_id, last.backup_id}
    await house.session.accept(command)
    gone = job_pb2.DeleteResult(backup_ids=[full.backup_id, last.backup_id], freed_bytes=2 << 20)
    await house.session.finish(command, job_pb2.JOB_STATE_COMPLETED, result=job_pb2.JobResult(delete=gone))
    assert (await house.api.ended(job_id)).result.delete == gone
    assert await refused(house.preview_delete(full.backup_id)) == "BACKUP_NOT_FOUND"


async def test_a_deletion_that_makes_no_sense_is_refused(house: House) -> None:
    assert await field_refused(house.preview_delete()) == "backup_ids"
    assert await field_refused(house.preview_delete("x")) == "backup_ids"
    assert await field_refused(house.preview_delete(*[str(uuid.uuid4()) for _ in range(1001)])) == "backup_ids"
    assert await refused(house.preview_delete(NOBODY)) == "BACKUP_NOT_FOUND"


async def test_a_verification_is_started_from_the_servers_hypervisor(house: House) -> None:
    full = await house.back_up()
    request = backup_service_pb2.StartVerifyRequest(backup_id=full.backup_id)
    job_id = (await house.api.backups.StartVerify(request)).job_id
    command = await house.session.command()
    assert (command.job_id, command.run.verify.backup_id) == (job_id, full.backup_id)
    request = backup_service_pb2.StartVerifyRequest(backup_id=NOBODY)
    assert await refused(house.api.backups.StartVerify(request)) == "BACKUP_NOT_FOUND"
    request = backup_service_pb2.StartVerifyRequest(backup_id=full.backup_id, hypervisor_id="nowhere")
    assert await refused(house.api.backups.StartVerify(request)) == "HYPERVISOR_NOT_FOUND"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"server_id": "nobody"}, "SERVER_NOT_FOUND"),
        ({"storage_id": "nowhere"}, "STORAGE_NOT_FOUND"),
        ({"server_id": ""}, "INVALID_FIELD"),
        ({"storage_id": ""}, "INVALID_FIELD"),
        ({"disks": ["v d a"]}, "INVALID_FIELD"),
        ({"request_id": "x"}, "INVALID_FIELD"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(house: House, fields: dict[str, Any], reason: str) -> None:
    assert await refused(house.start(**fields)) == reason


async def test_a_deleted_server_is_not_backed_up(house: House) -> None:
    from clients.gen.backupmanager.v1 import server_service_pb2

    await house.api.servers.DeleteServer(server_service_pb2.DeleteServerRequest(server_id=house.server.server_id))
    assert await refused(house.start()) == "SERVER_DELETED"


@pytest.mark.feature("N9", "M8")
async def test_backups_are_listed_newest_first_and_by_filter(house: House) -> None:
    made = [(await house.back_up()) for _ in range(5)]
    request = backup_service_pb2.ListBackupsRequest

    async def listed(**fields: Any) -> list[str]:
        rows = await all_pages(
            lambda token: house.api.backups.ListBackups(request(page_size=2, page_token=token, **fields)), "backups"
        )
        return [row.backup_id for row in rows]

    newest_first = [one.backup_id for one in reversed(made)]
    assert await listed(server_id=house.server.name) == newest_first
    assert await listed(storage_id=house.storage.name) == newest_first
    assert await listed(storage_id=house.storage.name, start_time=made[3].create_time) == newest_first[:2]
    assert await listed(storage_id=house.storage.name, end_time=made[1].create_time) == newest_first[-1:]
    assert await listed(storage_id=house.storage.name, end_time=Timestamp(seconds=1)) == []
    assert await refused(listed(server_id="nobody")) == "SERVER_NOT_FOUND"
    assert await refused(listed(storage_id="nowhere")) == "STORAGE_NOT_FOUND"
    missing = backup_service_pb2.GetBackupRequest(backup_id=NOBODY)
    assert await refused(house.api.backups.GetBackup(missing)) == "BACKUP_NOT_FOUND"


@pytest.mark.feature("M6", "M8", "M10", "M17", "E1")
async def test_chains_filters_and_a_diagnosis_over_the_wire(house: House) -> None:
    full = await house.back_up()
    newer = await house.back_up(full.backup_id)
    request = backup_service_pb2.ListBackupChainsRequest(server_id=house.server.name, page_size=1)
    first = await house.api.backups.ListBackupChains(request)
    request.page_token = first.next_page_token
    second = await house.api.backups.ListBackupChains(request)
    assert [(one.disk, one.current, one.disk_removed) for one in (*first.chains, *second.chains)] == [
        ("vda", True, False),
        ("vdb", True, False),
    ]
    assert not second.next_page_token
    assert first.chains[0].storage_name == house.storage.name
    assert [one.backup_id for one in first.chains[0].records] == [full.backup_id, newer.backup_id]

    async def listed(**fields: Any) -> list[str]:
        request = backup_service_pb2.ListBackupsRequest(server_id=house.server.server_id, **fields)
        return [one.backup_id for one in (await house.api.backups.ListBackups(request)).backups]

    assert await listed(types=[disk_pb2.BACKUP_TYPE_FULL]) == [full.backup_id]
    assert await listed(encrypted=True) == []
    assert await listed(encrypted=False, job_id=newer.job_id) == [newer.backup_id]

    async def jobs(**fields: Any) -> list[str]:
        return [one.job_id for one in (await house.api.jobs.ListJobs(job_service_pb2.ListJobsRequest(**fields))).jobs]

    assert await jobs(storage_id=house.storage.name) == [newer.job_id, full.job_id]
    assert await jobs(hypervisor_id=house.station.name, job_id=newer.job_id) == [newer.job_id]
    assert await refused(jobs(schedule_id="none")) == "SCHEDULE_NOT_FOUND"
    assert await field_refused(jobs(job_id="%")) == "job_id"

    stub = overview_service_pb2_grpc.OverviewServiceStub(house.api.channel)
    diagnosed = await stub.DiagnoseServer(overview_service_pb2.DiagnoseServerRequest(server_id=house.server.name))
    assert not diagnosed.will_be_backed_up
    assert diagnosed.summary == f"hypervisor {house.station.name} has no schedule"
    assert diagnosed.findings[0].step == "server"
    assert next(one for one in diagnosed.findings if one.step == "schedule").remedy
