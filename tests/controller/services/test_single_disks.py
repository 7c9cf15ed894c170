"""A type, a point and a target for each disk: asked through the API, refused when asked, and told to the agent."""

import uuid
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    backup_service_pb2,
    disk_pb2,
    schedule_service_pb2,
)
from tests.controller.services.api import field_refused, refusal, refused
from tests.controller.services.test_backups import House, house  # noqa: F401 -- a fixture

FULL, INCREMENTAL = disk_pb2.BACKUP_TYPE_FULL, disk_pb2.BACKUP_TYPE_INCREMENTAL
QCOW2 = disk_pb2.IMAGE_FORMAT_QCOW2


async def restored(house: House, backup_id: str, **fields: Any) -> Any:  # noqa: F811 -- the fixture's name
    """Preview and start a restore; return what the agent is told."""
    preview = await house.preview_restore(backup_id=backup_id, **fields)
    request = backup_service_pb2.StartRestoreRequest(
        backup_id=backup_id, confirmation=preview.confirmation, request_id=str(uuid.uuid4()), **fields
    )
    await house.api.backups.StartRestore(request)
    return (await house.session.command()).run.restore


@pytest.mark.feature("C12")
async def test_a_disk_has_a_type_of_its_own(house: House) -> None:  # noqa: F811
    await house.start(disk_types={"vdb": FULL})
    work = (await house.session.command()).run.backup
    assert (dict(work.disk_types), work.type) == ({"vdb": FULL}, INCREMENTAL)
    assert not work.HasField("interval")


@pytest.mark.feature("C12")
async def test_types_of_disks_that_are_not_backed_up_are_refused_when_asked(house: House) -> None:  # noqa: F811
    assert await field_refused(house.start(disks=["vda"], disk_types={"vdb": FULL})) == "disk_types"
    assert await field_refused(house.start(disk_types={"../x": FULL})) == "disk_types"
    assert await field_refused(house.start(disk_types={"vda": 0})) == "disk_types"
    assert await field_refused(house.start(disk_types={"vda": 99})) == "disk_types"


@pytest.mark.feature("T29")
async def test_a_single_backup_knows_how_far_apart_the_schedules_runs_are(house: House) -> None:  # noqa: F811
    request = schedule_service_pb2.CreateScheduleRequest(
        hypervisor_id=house.server.hypervisor_id,
        storage_id=house.storage.storage_id,
        enabled=True,
        default_access=access_level_pb2.ACCESS_LEVEL_SCHEDULED_ONLY,
    )
    request.overrides.interval_hours = 12
    await house.api.schedules.CreateSchedule(request)
    await house.start()
    assert (await house.session.command()).run.backup.interval.seconds == 12 * 3600


@pytest.mark.feature("C12", "M15")
async def test_disks_of_several_points_go_to_targets_of_their_own(house: House) -> None:  # noqa: F811
    full = await house.back_up()
    last = await house.back_up(full.backup_id)
    choice = {"points": {"vdb": full.backup_id}, "target_format": QCOW2, "overwrite": True}
    choice |= {"target_folder": "/out", "targets": {"vda": "/dev//vg/a"}}

    work = await restored(house, last.backup_id, **choice)

    assert dict(work.points) == {"vdb": full.backup_id}
    assert dict(work.targets) == {"vda": "/dev/vg/a"}
    assert (work.target_format, work.overwrite, work.target_folder) == (QCOW2, True, "/out")
    assert (work.backup_id, work.domain_uuid, list(work.disks)) == (last.backup_id, "", ["vda", "vdb"])


@pytest.mark.feature("C12", "M15")
async def test_a_preview_tells_what_is_read_and_is_for_this_choice_alone(house: House) -> None:  # noqa: F811
    other = await house.back_up()
    last = await house.back_up()
    shown = await house.preview_restore(backup_id=last.backup_id, points={"vdb": other.backup_id})
    assert list(shown.chain_backup_ids) == [other.backup_id, last.backup_id]
    assert shown.stops_server
    request = backup_service_pb2.StartRestoreRequest(backup_id=last.backup_id, confirmation=shown.confirmation)
    assert await refused(house.api.backups.StartRestore(request)) == "CONFIRMATION_STALE"
    to_file = await house.preview_restore(backup_id=last.backup_id, disks=["vda"], targets={"vda": "/out/a"})
    assert not to_file.stops_server


@pytest.mark.feature("C12")
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"disks": ["vda"], "targets": {"vdb": "/out/b"}}, "targets"),
        ({"targets": {"vda": "/out/a"}}, "targets"),  # vdb has nowhere to go
        ({"targets": {"vda": "/out/a", "vdb": "/out//a"}}, "targets"),
        ({"target_folder": "/out", "targets": {"vda": "/out/vdb.raw"}}, "targets"),
        ({"targets": {"vda": "a", "vdb": "/b"}}, "targets"),
        ({"targets": {"vda": "/a/../b", "vdb": "/b"}}, "targets"),
        ({"target_format": QCOW2}, "target_format"),
        ({"overwrite": True}, "overwrite"),
        ({"points": {"vda": "no id"}}, "points"),
    ],
)
async def test_a_choice_that_cannot_be_done_is_refused_when_asked(
    house: House,  # noqa: F811
    fields: dict[str, Any],
    field: str,
) -> None:
    full = await house.back_up()
    assert await field_refused(house.preview_restore(backup_id=full.backup_id, **fields)) == field


@pytest.mark.feature("C12")
async def test_a_point_has_to_hold_the_disk_and_be_asked_for(house: House) -> None:  # noqa: F811
    full = await house.back_up()
    asked = house.preview_restore(backup_id=full.backup_id, points={"vdz": full.backup_id})
    assert (await refusal(asked)).reason == "DISK_NOT_FOUND"
    asked = house.preview_restore(backup_id=full.backup_id, disks=["vda"], points={"vdb": full.backup_id})
    assert await field_refused(asked) == "points"


@pytest.mark.feature("R20", "S21")
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_verification_leaves_marks_where_it_may_write(house: House, *, read_only: bool) -> None:  # noqa: F811
    full = await house.back_up()
    if read_only:
        await house.switch(read_only=True)
    await house.api.backups.StartVerify(backup_service_pb2.StartVerifyRequest(backup_id=full.backup_id))
    assert (await house.session.command()).run.verify.note_damage is not read_only
