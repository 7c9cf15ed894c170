"""Restore tickets: when one is over, what file is refused, and what bm-engine takes beside one."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import spec
from engine.errors import BackupManagerError, InvalidSpec
from engine.spec import LocalConfig, SftpConfig, StorageSpec
from engine.ticket import CLOCK_STEP_MAX, LIFETIME_SECONDS_MAX, Revocation, Ticket, load_ticket, parse_ticket

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECRET, KEY = "s3cr3t-of-the-storage", "ab" * 32
SERVER, BACKUP = "018f0000-0000-7000-8000-000000000002", "018f0000-0000-7000-8000-000000000001"


def ticket(created: datetime = NOW, lifetime: timedelta = timedelta(hours=12), disks: tuple[str, ...] = ()) -> Ticket:
    return Ticket(
        create_time=created.isoformat(),
        expire_time=(created + lifetime).isoformat(),
        storage=StorageSpec(BACKUP, SERVER, sftp=SftpConfig("h", "u", "/srv", SECRET)),
        server_id=SERVER,
        backup_id=BACKUP,
        disks=disks,
        server_keys={"k1": KEY},
    )


def write(path: Path, one: Ticket, mode: int = 0o600) -> Path:
    path.write_text(spec.dump(one))
    path.chmod(mode)
    return path


def reason_of(path: Path, now: datetime = NOW) -> str:
    with pytest.raises(BackupManagerError) as caught:
        load_ticket(path, now)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value.reason


@pytest.mark.feature("M11")
@pytest.mark.parametrize(
    ("after", "over"),
    [
        (timedelta(0), False),
        (timedelta(hours=12, seconds=-1), False),
        (timedelta(hours=12), True),
        (timedelta(days=400), True),
        (-CLOCK_STEP_MAX, False),
        (-CLOCK_STEP_MAX - timedelta(seconds=1), True),
    ],
)
def test_a_ticket_is_over_after_its_time_and_where_the_clock_was_set_back(after: timedelta, over: bool) -> None:
    assert ticket().is_over(NOW + after) is over


@pytest.mark.feature("M11")
@given(lifetime=st.timedeltas(timedelta(0), timedelta(days=3650)), after=st.timedeltas(timedelta(0)))
def test_no_ticket_lives_longer_than_a_week_whatever_it_says(lifetime: timedelta, after: timedelta) -> None:
    created = datetime(1970, 1, 1, tzinfo=UTC)
    try:
        now = created + after
    except OverflowError:
        return

    over = ticket(created, lifetime).is_over(now)

    assert over is (after >= min(lifetime, timedelta(seconds=LIFETIME_SECONDS_MAX)))


@pytest.mark.feature("M11")
def test_times_at_the_ends_of_the_calendar_are_over_and_no_fault() -> None:
    for text in ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"):
        data = json.loads(spec.dump(ticket()))
        assert parse_ticket(json.dumps({**data, "create_time": text}).encode(), "t").is_over(NOW)


@pytest.mark.feature("M11")
@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"version": 1}', b"null"],
    ids=["empty", "object", "list", "bytes", "deep", "half", "null"],
)
def test_what_is_no_ticket_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_ticket(data, "t")


@pytest.mark.feature("M11")
@pytest.mark.parametrize(
    ("field", "value"), [("expire_time", "soon"), ("create_time", "2026-11-23T12:00:00"), ("version", 2), ("more", 1)]
)
def test_a_ticket_with_a_field_that_does_not_fit_is_refused(field: str, value: object) -> None:
    data = {**json.loads(spec.dump(ticket())), field: value}

    with pytest.raises(InvalidSpec) as caught:
        parse_ticket(json.dumps(data).encode(), "t")

    assert SECRET not in str(caught.value)


@pytest.mark.feature("M11")
def test_only_a_private_file_of_ones_own_is_used(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", ticket())
    assert load_ticket(good, NOW) == ticket()

    for mode in (0o640, 0o604, 0o620, 0o700):
        assert reason_of(write(tmp_path / f"{mode:o}.json", ticket(), mode)) == "TICKET_EXPOSED"
    link = tmp_path / "link.json"
    link.symlink_to(good)
    assert reason_of(link) == "INVALID_FIELD"
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert reason_of(tmp_path / "pipe") == "TICKET_EXPOSED"
    assert reason_of(tmp_path / "none.json") == "INVALID_FIELD"
    os.chown(good, 4242, 4242)
    assert reason_of(good) == "TICKET_EXPOSED"


@pytest.mark.feature("M11")
def test_a_ticket_shows_no_secret_and_restores_its_own_disks_only() -> None:
    one = ticket(disks=("vda", "vdb"))

    assert SECRET not in repr(one)
    assert KEY not in repr(one)
    assert one.job(()).disks == ("vda", "vdb")
    assert one.job(("vdb",)).disks == ("vdb",)
    assert one.job(()).domain_uuid == ""
    with pytest.raises(InvalidSpec):
        one.job(("vdc",))
    assert ticket().job(("vdc",)).disks == ("vdc",)


@pytest.mark.feature("M11")
def test_the_command_refuses_with_the_reason_and_the_remedy(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    local = StorageSpec(BACKUP, SERVER, local=LocalConfig(str(tmp_path / "vault")))
    fresh = write(
        tmp_path / "fresh.json", Ticket(now.isoformat(), (now + timedelta(hours=1)).isoformat(), local, SERVER, BACKUP)
    )
    over = write(tmp_path / "over.json", ticket(now - timedelta(hours=2), timedelta(hours=1)))
    exposed = write(tmp_path / "exposed.json", ticket(now), 0o644)
    to = ("--to", str(tmp_path))

    revoked = tmp_path / "revoked.json"
    revoked.write_text(spec.dump(Revocation(now.isoformat())))
    revoked.chmod(0o600)
    for arguments, status, reason in (
        (("restore", "--ticket", str(over), *to), 4, "TICKET_EXPIRED"),
        (("restore", "--ticket", str(revoked), *to), 4, "TICKET_REVOKED"),
        (("list", "--ticket", str(over)), 4, "TICKET_EXPIRED"),
        (("list", "--ticket", str(fresh), "web1"), 2, "INVALID_FIELD"),
        (("list",), 2, "INVALID_FIELD"),
        (("verify", "--ticket", str(revoked)), 4, "TICKET_REVOKED"),
        (("verify", "--ticket", str(fresh), "--without-key"), 2, "INVALID_FIELD"),
        (("verify", "web1"), 2, "INVALID_FIELD"),
        (("restore", "--ticket", str(exposed), *to), 5, "TICKET_EXPOSED"),
        (("restore", "--ticket", str(fresh)), 2, "INVALID_FIELD"),
        (("restore", "--ticket", str(fresh), *to, "web1"), 2, "INVALID_FIELD"),
        (("restore", "--ticket", str(fresh), *to, "--storage", "s.json"), 2, "INVALID_FIELD"),
        (("restore", *to), 2, "INVALID_FIELD"),
    ):
        command = [sys.executable, "-m", "engine.cli", arguments[0], "--json", *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        error = json.loads(done.stdout)["error"]
        assert error["reason"] == reason
        assert SECRET not in done.stdout + done.stderr
        if status == 4:
            assert "bmctl backup ticket" in error["message"]
