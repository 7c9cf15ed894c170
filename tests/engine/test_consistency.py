"""What a backup of a guest that writes all the while is worth: its file systems, and the promises of its database.

One guest serves all tests here, each of which leaves it running, thawed and writing.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.spec import Consistency
from tests.engine.aftermath import assert_host_is_clean
from tests.engine.rig import RecordingReport, Rig, result
from tests.servers import guest_writer
from tests.servers.guest import RealGuest, check_file_system, needs_recovery
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

REACHED = {"freeze_or_pause": "frozen", "freeze": "frozen", "pause": "paused", "none": "crash"}


@pytest.fixture(scope="module")
def guest(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGuest]:
    with RealGuest(libvirtd.uri, tmp_path_factory.mktemp("guest") / "guest", ("qcow2", "raw")) as guest:
        yield guest


@pytest.fixture
def rig(tmp_path: Path, libvirtd: Libvirtd) -> Rig:
    return Rig.make(tmp_path, libvirtd.uri)


class _Promises(RecordingReport):
    """Notes what the guest's writer has promised before the instant, and again once the instant is over."""

    def __init__(self, guest: RealGuest) -> None:
        super().__init__()
        self._guest = guest
        self.before = 0
        self.after = 0

    def stage(self, stage: str, bytes_total: int = 0) -> None:
        super().stage(stage, bytes_total)
        if stage == "freeze":
            self.before = guest_writer.acknowledged(self._guest)
        elif stage == "read":
            self.after = guest_writer.acknowledged(self._guest)


def _held(images: dict[str, Path], *, frozen: bool) -> int:
    """Check both file systems as they were read, and return how many records both disks hold."""
    records = []
    for image in images.values():
        assert needs_recovery(image) != frozen
        check_file_system(image)
        records.append(guest_writer.records_in(image))
    first, second = records
    assert second.whole <= first.whole <= second.whole + 1  # both disks show one instant
    if frozen:  # nothing was under way
        assert not first.torn
        assert not second.torn
    return second.whole


@pytest.mark.feature("T17", "T18", "T19", "T20", "T11", "T28")
@pytest.mark.parametrize("mode", list(REACHED))
def test_no_promise_of_the_guest_is_lost(rig: Rig, guest: RealGuest, tmp_path: Path, mode: Consistency) -> None:
    guest_writer.start(guest)
    for step in ("full", "incremental"):
        report = _Promises(guest)
        outcome = rig.run(report=report, backup=rig.backup_job(guest.uuid, consistency=mode))
        made = result(outcome)

        assert (outcome.state, made["consistency"]) == ("completed", REACHED[mode])
        assert [one["type"] for one in made["disks"]] == [step, step]
        images = rig.restore_to(tmp_path / step, guest.uuid, made["backup_id"])
        assert report.before <= _held(images, frozen=REACHED[mode] == "frozen") <= report.after + 1
        assert report.before > 0
        guest_writer.wait_for_more(guest)
        assert guest.freeze_status() == "thawed"
    assert_host_is_clean(rig, guest)


@pytest.mark.feature("T17", "T18")
def test_a_guest_without_an_agent_is_no_warning_and_one_that_lost_its_agent_is(
    rig: Rig, guest: RealGuest, tmp_path: Path
) -> None:
    new = Rig.make(tmp_path / "new", rig.uri)
    assert rig.back_up(guest.uuid)["consistency"] == "frozen"
    guest.stop_agent()
    try:
        for where, state in ((new, "completed"), (rig, "completed_with_warnings"), (rig, "completed")):
            outcome = where.run(backup=where.backup_job(guest.uuid))
            assert (outcome.state, result(outcome)["consistency"]) == (state, "paused")
            assert result(outcome)["quiesce_seconds"] > 0
            told = where.report.infos if state == "completed" else outcome.warnings
            assert any("no guest agent is connected" in one for one in told)
        failed = rig.run(backup=rig.backup_job(guest.uuid, consistency="freeze"))
        assert failed.failure is not None
        assert failed.failure["reason"] == "QUIESCE_FAILED"
        assert_host_is_clean(rig, guest)
    finally:
        guest.run("rm -f /run/agent-off")
        wait_until(guest.agent_answers, 60, "the guest agent")
