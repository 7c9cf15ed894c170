"""The index of restore points, and what work on them is shown, confirmed and does."""

from dataclasses import replace
from typing import Any

import peewee
import pytest

from controller import backups, leases, previews, servers
from controller.agents.convert import Accepted, Finished
from controller.backups import Backup, BackupFilter, BackupRecord, DiskBackup
from controller.errors import (
    BackupNotFound,
    ConfirmationStale,
    DiskNotFound,
    InvalidField,
    ServerBusy,
    ServerDeleted,
)
from controller.hypervisors import Domain
from controller.jobs import Failure, Job
from controller.order_types import DeleteOrder, RestoreOrder
from engine.ids import new_id
from tests.controller.world import Agent, World, record_of


class Setting:
    """One server with a chain of a full and two incrementals, and an older chain of one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.agent: Agent = world.enroll("h1")
        self.server = world.server(self.agent, "web")
        self.storage = world.storage()
        self.old = self.make("old")
        self.full = self.make("c1")
        self.first = self.make("c1", self.full)
        self.second = self.make("c1", self.full, self.first)

    def make(self, chain: str, *needs: str) -> str:
        return self.agent.back_up(self.server, self.storage, chain, needs)

    def get(self, backup_id: str) -> Backup:
        return self.world.run(backups.get, backup_id)

    def states(self) -> list[str]:
        return [self.get(one).state for one in (self.old, self.full, self.first, self.second)]

    def preview(self, backup_id: str = "", *disks: str, folder: str = "") -> previews.RestorePreview:
        server_id = "" if backup_id else self.server.server_id
        return self.world.run(previews.preview_restore, backup_id, server_id, disks, folder, self.world.context())

    def damage(self, job: Job, *backup_ids: str, count: int = 1) -> Job:
        found = [{"backup_id": one, "disk": "vda"} for one in backup_ids]
        result = {"verify": {"frames": "9", "damaged": found, "damaged_count": str(count)}}
        failure = Failure("VERIFY_FAILED", "damaged")
        return self.agent.finish(job, "failed", failure=failure, result=result)

    def delete_all(self, job: Job, *backup_ids: str) -> Job:
        return self.agent.finish(job, result={"delete": {"backup_ids": list(backup_ids), "freed_bytes": "5"}})


@pytest.fixture
def setting(world: World) -> Setting:
    return Setting(world)


def found(setting: Setting, backup_id: str, chain: str = "c9", **values: object) -> BackupRecord:
    record = BackupRecord(
        backup_id=backup_id,
        server_id=setting.server.server_id,
        job_id="",
        create_time=setting.world.clock.time,
        disks=(DiskBackup("vda", "full", chain, stored_bytes=7),),
        manifest_digest="e" * 64,
    )
    return replace(record, **values)  # type: ignore[arg-type]  # fields by name


# ---- the index ----------------------------------------------------------------------------------------------------------


def test_a_backup_is_in_the_catalog_with_its_disks_and_needs(setting: Setting) -> None:
    backup = setting.get(setting.second)

    assert backup.state == "available"
    assert (backup.disks[0].chain_id, backup.disks[0].parent_backup_id) == ("c1", setting.first)
    assert backup.stored_bytes == 50
    assert setting.world.run(backups.needs, setting.second) == [setting.full, setting.first, setting.second]
    assert setting.world.run(backups.active_chains, setting.server.server_id, setting.storage.storage_id) == {
        f"{setting.server.server_id}/c1"
    }
    found_server = setting.world.run(servers.find, "web")
    assert found_server.last_backup_time == backup.create_time


@pytest.mark.feature("M8")
def test_backups_are_listed_newest_first_by_filter_and_page(setting: Setting) -> None:
    world = setting.world
    other = setting.agent.back_up(world.server(setting.agent, "db"), setting.storage, "c2")
    ids = [other, setting.second, setting.first, setting.full, setting.old]

    def listed(after: tuple[str] | None = None, limit: int = 100, **values: Any) -> list[str]:
        found = world.run(backups.list_backups, BackupFilter(**values), after=after, limit=limit)
        return [one.backup_id for one in found]

    assert listed() == ids
    assert listed(server_id=setting.server.server_id) == ids[1:]
    assert listed(storage_id="another") == []
    assert listed(types=["incremental"]) == ids[1:3]
    assert listed(types=["incremental", "full"]) == ids
    assert listed(types=["copy"]) == []
    assert listed(encrypted=False, states=["available"]) == ids
    assert listed(encrypted=True) == listed(states=["damaged", "missing"]) == []
    assert listed(job_id=setting.get(other).job_id) == [other]
    assert listed(limit=2) == ids[:2]
    assert listed(after=(ids[1],), limit=2) == ids[2:4]
    assert listed(start_time=setting.get(ids[2]).create_time, end_time=setting.get(ids[0]).create_time) == ids[1:3]


def test_a_record_of_another_backup_than_the_job_s_is_refused(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.backup(setting.server, setting.storage))
    forged = replace(record_of(job, "c1"), backup_id=setting.full)

    done = setting.agent.finish(job, record=forged)

    assert done.state == "completed_with_warnings"
    assert setting.get(setting.full).job_id != job.job_id
    with pytest.raises(BackupNotFound):
        setting.get(job.backup_id)


# ---- deleting -----------------------------------------------------------------------------------------------------------


def test_a_deletion_takes_what_cannot_live_without_it(setting: Setting) -> None:
    preview = setting.world.run(previews.preview_delete, [setting.first], setting.world.context())
    assert [one.backup_id for one in preview.backups] == [setting.second, setting.first]
    assert preview.stored_bytes == 100

    job = setting.world.start(DeleteOrder([setting.first], preview.confirmation))
    assert job.spec["backup_ids"] == [setting.second, setting.first]
    setting.agent.accept(job)
    setting.delete_all(job, setting.second, setting.first)

    with pytest.raises(BackupNotFound):
        setting.get(setting.second)
    assert setting.get(setting.full).state == "available"
    with pytest.raises(BackupNotFound):
        setting.world.run(previews.preview_delete, [setting.first], setting.world.context())


def test_only_what_was_ordered_and_is_gone_leaves_the_catalog(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.delete([setting.first]))

    setting.delete_all(job, setting.second, setting.old)  # it stopped half way, and boasts of another

    assert setting.get(setting.first).state == "available"
    assert setting.get(setting.old).state == "available"
    with pytest.raises(BackupNotFound):
        setting.get(setting.second)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_deletion_that_stopped_half_way_counts_as_far_as_it_came_and_is_asked_again(
    setting: Setting, state: str
) -> None:
    world, agent = setting.world, setting.agent
    job = agent.accept(world.delete([setting.full]))

    agent.finish(job, state, result={"delete": {"backup_ids": [setting.second]}})
    with pytest.raises(BackupNotFound):
        setting.get(setting.second)
    reindex = agent.accept(world.reindex(setting.storage, agent))
    for backup_id in (setting.old, setting.full):
        agent.find(reindex, found(setting, backup_id, manifest_digest="d" * 64))
    agent.finish(reindex, result={"reindex": {"backup_count": "2"}})

    assert setting.get(setting.first).state == "missing"  # it was removed, and nobody was told
    assert world.delete([setting.full]).spec["backup_ids"] == [setting.full]


def test_what_needs_a_missing_backup_is_damaged(setting: Setting) -> None:
    agent = setting.agent
    reindex = agent.accept(setting.world.reindex(setting.storage, agent))
    for backup_id in (setting.old, setting.first, setting.second):
        agent.find(reindex, found(setting, backup_id, manifest_digest="d" * 64))

    agent.finish(reindex, result={"reindex": {"backup_count": "3"}})

    assert setting.states() == ["available", "missing", "damaged", "damaged"]


@pytest.mark.feature("N16")
def test_a_manifest_lays_no_hand_on_another_server_s_chain(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    reindex = agent.accept(world.reindex(setting.storage, agent))
    early, late = new_id(world.now()), new_id(world.now())
    other = {"server_id": new_id(world.now()), "chain": "c1"}
    agent.find(reindex, found(setting, late, needed_backup_ids=(early, setting.full, late), **other))
    agent.find(reindex, found(setting, early, **other))

    assert world.run(backups.needs, late) == [early, late]
    assert world.run(backups.dependents, [setting.full]) == [setting.second, setting.first, setting.full]
    assert not world.run(backups.chains_of, [late]) & world.run(backups.chains_of, [setting.full])


@pytest.mark.feature("N16")
def test_a_need_told_before_its_backup_was_known_does_not_cross_servers(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    reindex = agent.accept(world.reindex(setting.storage, agent))
    forged, known_later = new_id(world.now()), new_id(world.now())
    agent.find(reindex, found(setting, forged, needed_backup_ids=(known_later,), server_id=new_id(world.now())))
    agent.find(reindex, found(setting, known_later))

    assert world.run(backups.needs, forged) == [forged]
    assert world.run(backups.dependents, [known_later]) == [known_later]


def test_a_confirmation_holds_as_long_as_the_facts_do(setting: Setting) -> None:
    preview = setting.world.run(previews.preview_delete, [setting.full], setting.world.context())
    third = setting.make("c1", setting.full, setting.first, setting.second)

    with pytest.raises(ConfirmationStale):
        setting.world.start(DeleteOrder([setting.full], preview.confirmation))
    with pytest.raises(ConfirmationStale):
        setting.world.start(DeleteOrder([setting.full], ""))
    fresh = setting.world.run(previews.preview_delete, [setting.full], setting.world.context())
    assert fresh.backups[0].backup_id == third
    with pytest.raises(ConfirmationStale):  # of other backups, though it is real
        setting.world.start(DeleteOrder([setting.old], fresh.confirmation))
    assert setting.world.start(DeleteOrder([setting.full], fresh.confirmation)).state == "dispatched"


def test_backups_of_two_servers_or_none_are_no_deletion(setting: Setting) -> None:
    other = setting.agent.back_up(setting.world.server(setting.agent, "db"), setting.storage, "c2")

    for chosen in ([], [setting.full, other]):
        with pytest.raises(InvalidField):
            setting.world.run(previews.preview_delete, chosen, setting.world.context())


@pytest.mark.feature("R19")
def test_a_deletion_and_readers_of_its_chain_do_not_meet(setting: Setting) -> None:
    world = setting.world
    verify = world.verify(setting.second)
    with pytest.raises(ServerBusy) as refused:
        world.delete([setting.full])
    assert refused.value.facts["job_id"] == verify.job_id
    deleting = world.delete([setting.old])
    assert deleting.state == "dispatched"  # another chain
    setting.agent.finish(verify, result={"verify": {"damaged_count": "0"}})

    waiting = world.verify(setting.old)
    assert waiting.state == "queued"  # until the removal of its chain has ended
    setting.delete_all(deleting)
    assert world.job(waiting.job_id).state == "dispatched"


@pytest.mark.feature("R19")
def test_a_backup_and_a_deletion_of_the_chain_it_would_extend_do_not_meet(setting: Setting) -> None:
    world = setting.world
    backup = world.backup(setting.server, setting.storage)
    with pytest.raises(ServerBusy) as refused:
        world.delete([setting.second])
    assert refused.value.facts["job_id"] == backup.job_id
    old = world.delete([setting.old])
    assert old.state == "queued"  # another chain, but of the server that is backed up
    setting.agent.finish(backup, "failed", failure=Failure("STORAGE_FULL", "full"))
    assert world.job(old.job_id).state == "dispatched"
    waiting = world.backup(setting.server, setting.storage)
    assert waiting.state == "queued"  # at the hypervisor it would only wait for its deadline to pass
    setting.delete_all(old, setting.old)
    assert world.job(waiting.job_id).state == "dispatched"
    setting.agent.finish(waiting, "failed", failure=Failure("STORAGE_FULL", "full"))

    deleting = world.delete([setting.second])
    with pytest.raises(ServerBusy) as refused:
        world.backup(setting.server, setting.storage)
    assert refused.value.facts["job_id"] == deleting.job_id


@pytest.mark.feature("X6")
def test_deletions_of_a_hypervisor_come_one_after_the_other(setting: Setting) -> None:
    world = setting.world
    first, second = world.delete([setting.old]), world.delete([setting.first])
    other = world.enroll("h2")

    assert (first.state, second.state) == ("dispatched", "queued")
    setting.delete_all(first, setting.old)
    assert world.job(second.job_id).state == "dispatched"
    world.cancel(world.job(second.job_id))
    setting.agent.finish(second, "cancelled")
    elsewhere = world.delete([setting.first], hypervisor_id="h2")
    assert (elsewhere.hypervisor_id, elsewhere.spec["domain_uuid"]) == (other.hypervisor_id, "")


def test_a_deletion_goes_to_another_hypervisor_when_the_server_s_is_gone(setting: Setting) -> None:
    world = setting.world
    other = world.enroll("h2")
    world.clock.advance(60)
    other.heartbeat()

    assert world.delete([setting.old]).hypervisor_id == other.hypervisor_id


# ---- verifying ----------------------------------------------------------------------------------------------------------


def test_damage_marks_a_backup_and_all_that_needs_it(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.verify(setting.first))

    ended = setting.damage(job, setting.first)

    assert ended.state == "failed"
    assert setting.states() == ["available", "available", "damaged", "damaged"]


def test_damage_in_what_is_needed_damages_the_whole_chain_but_no_stranger(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.verify(setting.second))

    setting.damage(job, setting.full, setting.old, count=2)  # the other chain is none of this job's business

    assert setting.states() == ["available", "damaged", "damaged", "damaged"]


def test_a_clean_verification_clears_what_was_read(setting: Setting) -> None:
    world = setting.world
    setting.damage(world.verify(setting.second), setting.full)
    clean = {"verify": {"frames": "9", "damaged_count": "0"}}

    setting.agent.finish(world.verify(setting.first), "failed", failure=Failure("STORAGE_UNREACHABLE", "gone"))
    assert setting.states() == ["available", "damaged", "damaged", "damaged"]
    setting.agent.finish(world.verify(setting.first), result=clean)

    assert setting.states() == ["available", "available", "available", "damaged"]


# ---- reading a storage again --------------------------------------------------------------------------------------------


def test_a_reindex_adopts_strangers_marks_what_is_missing_and_counts(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    stranger, server_id = new_id(world.now()), new_id(world.now())
    job = agent.accept(world.reindex(setting.storage, agent))
    new = setting.make("c1", setting.full, setting.first, setting.second)  # made meanwhile: not seen, and not missing
    digest = setting.get(setting.full).manifest_digest
    strange = found(setting, stranger, server_id=server_id, domain_name="found", domain_uuid="uuid-found")
    agent.find(job, found(setting, setting.full, manifest_digest=digest), strange)
    agent.find(job, found(setting, setting.first, manifest_digest=digest, unreadable_disks=("vdb",)))
    unreadable = [f"servers/{setting.server.server_id}/{setting.second}/backup.json"]

    done = agent.finish(job, result={"reindex": {"backup_count": "3", "unreadable": unreadable}})

    told = {"backup_count": "3", "added_count": "1", "missing_count": "1", "damaged_count": "3"}
    assert done.result == {"reindex": {**told, "unreadable": unreadable}}
    assert setting.states() == ["missing", "available", "damaged", "damaged"]
    assert setting.get(new).state == "damaged"  # it needs what is
    assert setting.get(stranger).server_id == server_id
    adopted = world.run(servers.find, server_id)
    assert (adopted.name, adopted.state, adopted.hypervisor_id) == ("found", "active", "")


def test_a_reindex_that_failed_says_nothing_of_what_it_did_not_see(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.reindex(setting.storage, setting.agent))

    setting.agent.finish(job, "failed", failure=Failure("STORAGE_UNREACHABLE", "gone"))

    assert setting.states() == ["available"] * 4


def test_a_backup_that_ends_while_the_storage_is_read_is_not_missing(setting: Setting) -> None:
    backup = setting.agent.accept(setting.world.backup(setting.server, setting.storage))
    reindex = setting.agent.accept(setting.world.reindex(setting.storage, setting.agent))
    setting.agent.finish(backup, record=record_of(backup, "c2"))

    setting.agent.finish(reindex, result={"reindex": {"backup_count": "0"}})

    assert setting.get(backup.backup_id).state == "available"
    assert setting.states() == ["missing"] * 4


def test_what_was_missing_and_is_seen_again_is_available(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    digest = setting.get(setting.full).manifest_digest
    empty = {"reindex": {"backup_count": "0"}}
    agent.finish(agent.accept(world.reindex(setting.storage, agent)), result=empty)
    assert setting.states() == ["missing"] * 4

    again = agent.accept(world.reindex(setting.storage, agent))
    agent.find(again, found(setting, setting.full, manifest_digest=digest))

    assert setting.get(setting.full).state == "available"


def test_a_manifest_with_another_digest_is_damaged_and_ours_is_kept(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.reindex(setting.storage, setting.agent))

    setting.agent.find(job, found(setting, setting.full, manifest_digest="f" * 64))

    assert setting.get(setting.full).state == "damaged"
    assert setting.get(setting.full).manifest_digest == "d" * 64


def test_what_was_deleted_while_it_was_read_does_not_come_back(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    reindex = agent.accept(world.reindex(setting.storage, agent))
    deleting = world.delete([setting.old])
    setting.delete_all(deleting, setting.old)

    agent.find(reindex, found(setting, setting.old, manifest_digest="d" * 64))

    with pytest.raises(BackupNotFound):
        setting.get(setting.old)
    agent.finish(reindex, result={"reindex": {"backup_count": "1"}})
    later = agent.accept(world.reindex(setting.storage, agent))
    agent.find(later, found(setting, setting.old, manifest_digest="d" * 64))
    assert setting.get(setting.old).state == "available"  # the storage is the truth


def test_records_count_for_a_reindex_only(setting: Setting) -> None:
    job = setting.agent.accept(setting.world.verify(setting.full))
    stranger = new_id(setting.world.now())

    setting.agent.find(job, found(setting, stranger))

    assert setting.world.events_of(job)[-1] == ("records", "not a reindex")
    with pytest.raises(BackupNotFound):
        setting.get(stranger)


def test_a_reindex_that_sees_a_backup_before_its_job_ended_is_no_obstacle(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    job = agent.accept(world.backup(setting.server, setting.storage))
    reindex = agent.accept(world.reindex(setting.storage, agent))
    made = record_of(job, "c1", (setting.full, setting.first, setting.second))
    agent.find(reindex, made)

    done = agent.finish(job, record=made)

    assert done.state == "completed"
    assert setting.get(job.backup_id).job_id == job.job_id
    assert len(world.run(backups.needs, job.backup_id)) == 4


def test_a_result_that_cannot_be_taken_in_ends_its_job_and_nothing_else(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, agent = setting.world, setting.agent
    job = agent.accept(world.backup(setting.server, setting.storage))
    after = agent.event(job.stamp, Accepted(), 99)

    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(backups, "record", stumble)
        done = agent.finish(job, record=record_of(job, "c1"))

    assert done.failure is not None
    assert done.failure.reason == "INTERNAL"
    assert agent.send(after) == 99  # the journal goes on
    assert world.events_of(job)[-2:] == [("finished", "fault"), ("accepted", "job ended")]
    assert world.backup(setting.server, setting.storage).state == "dispatched"


def test_an_event_is_not_lost_to_a_database_in_trouble(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = setting.agent
    job = agent.accept(setting.world.backup(setting.server, setting.storage))
    event = agent.event(job.stamp, Finished("completed", record=record_of(job, "c1")), agent.sequence + 1)

    def full(*_: object) -> None:
        raise peewee.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(backups, "record", full)
        with pytest.raises(peewee.OperationalError):
            agent.send(event)
    assert setting.world.job(job.job_id).state == "running"

    assert agent.send(event) == event.sequence
    assert setting.world.job(job.job_id).state == "completed"


# ---- restoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("M15", "M16")
def test_a_restore_is_shown_confirmed_and_started(setting: Setting) -> None:
    preview = setting.preview()
    assert preview.backup.backup_id == setting.second
    assert (preview.disks, preview.stops_server) == (("vda",), True)
    assert preview.chain_backup_ids == (setting.full, setting.first, setting.second)

    job = setting.world.start(RestoreOrder(setting.second, confirmation=preview.confirmation))

    assert (job.type, job.state, job.server_id) == ("restore", "dispatched", setting.server.server_id)
    assert job.spec["manifest_digest"] == "d" * 64
    assert job.spec["domain_uuid"] == setting.server.domain_uuid
    assert setting.world.run(leases.chains_of, [job.job_id]) == {job.job_id: {f"{setting.server.server_id}/c1"}}


@pytest.mark.feature("M15", "M16")
def test_a_restore_that_started_its_server_is_known_before_the_next_inventory(setting: Setting) -> None:
    world, agent = setting.world, setting.agent
    agent.domains["web"] = replace(agent.domains["web"], state="shut_off")
    agent.report()
    preview = setting.preview()
    assert not preview.stops_server
    job = agent.accept(world.start(RestoreOrder(setting.second, confirmation=preview.confirmation)))
    agent.finish(job, result={"restore": {"server_started": True}})

    after = setting.preview()
    agent.domains["web"] = replace(agent.domains["web"], state="running")
    agent.report()

    assert after.stops_server
    assert world.start(RestoreOrder(setting.second, confirmation=after.confirmation)).type == "restore"


def test_a_restore_is_refused_when_what_was_shown_has_changed(setting: Setting) -> None:
    preview = setting.preview(setting.full)
    with pytest.raises(ConfirmationStale):
        setting.world.start(RestoreOrder(setting.full, target_folder="/srv/out", confirmation=preview.confirmation))

    stopped = replace(setting.agent.domains["web"], state="shut_off")
    setting.agent.domains["web"] = stopped
    setting.agent.report()
    with pytest.raises(ConfirmationStale):
        setting.world.start(RestoreOrder(setting.full, confirmation=preview.confirmation))
    fresh = setting.preview(setting.full)
    assert not fresh.stops_server
    assert setting.world.start(RestoreOrder(setting.full, confirmation=fresh.confirmation)).state == "dispatched"


@pytest.mark.feature("M17")
def test_a_disk_that_is_gone_is_left_out_of_a_restore_and_refused_when_asked_for(setting: Setting) -> None:
    two = tuple(DiskBackup(disk, "full", f"c-{disk}") for disk in ("vda", "vdb"))
    job = setting.world.backup(setting.server, setting.storage)
    both = setting.agent.finish(job, record=replace(record_of(job, "c1"), disks=two)).backup_id
    setting.agent.domains["web"] = Domain(setting.server.domain_uuid, "web", "running", "", ({"disk": "vdb"},))
    setting.agent.report()

    assert setting.preview(both).disks == ("vdb",)
    for disk in ("vda", "vdz"):
        with pytest.raises(DiskNotFound):
            setting.preview(both, disk)
    with pytest.raises(DiskNotFound):  # nothing is left of it, and an empty list would mean everything
        setting.preview(setting.full)
    files = setting.preview(setting.full, folder="/srv/out")
    assert (files.disks, files.stops_server) == (("vda",), False)


def test_a_deleted_server_is_restored_to_files_only(setting: Setting) -> None:
    setting.world.run(servers.delete, setting.server.server_id, setting.world.now())

    with pytest.raises(ServerDeleted):
        setting.preview(setting.full)
    preview = setting.preview(setting.full, folder="/srv/out")
    order = RestoreOrder(setting.full, target_folder="/srv/out", confirmation=preview.confirmation)
    assert setting.world.start(order).spec["domain_uuid"] == ""


def test_a_server_without_backups_has_nothing_to_restore(setting: Setting) -> None:
    other = setting.world.server(setting.agent, "db")

    with pytest.raises(BackupNotFound):
        setting.world.run(previews.preview_restore, "", other.server_id, (), "", setting.world.context())
