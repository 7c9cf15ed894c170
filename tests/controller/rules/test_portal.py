"""What end users are told: every drive has one name, every reason a sentence, every refusal its turn."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.gen.backupmanager.v1 import errors_pb2, portal_pb2
from controller.rules.access import LEVELS, Act, allows
from controller.rules.portal import ADVICE, Permit, Standing, drive_names, percent, permit, refusal_of, stay

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FREE = Standing("full_access", switched_on=True, cooldown=HOUR, last_success=None)


@pytest.mark.feature("U4", "U5", "G10", "G11", "G12", "G13")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Permit()),
        ({"level": "scheduled_only"}, Permit("not_included")),
        ({"level": "disabled", "switched_on": False, "busy": True}, Permit("not_included")),
        ({"switched_on": False, "last_success": NOW}, Permit("switched_off")),
        ({"possible": False, "busy": True}, Permit("contact_support")),
        ({"locked": True, "busy": True}, Permit("locked")),
        ({"locked": True, "lock_expire_time": NOW + DAY}, Permit("locked", NOW + DAY)),
        ({"busy": True, "last_success": NOW}, Permit("busy")),
        ({"last_success": NOW - HOUR + timedelta(seconds=1)}, Permit("cooldown", NOW + timedelta(seconds=1))),
        ({"last_success": NOW - HOUR}, Permit()),
        ({"last_success": NOW, "cooldown": timedelta(0)}, Permit()),
    ],
)
def test_what_stands_in_the_way_of_a_user(changes: dict[str, object], expected: Permit) -> None:
    assert permit("backup", replace(FREE, **changes), NOW) == expected  # type: ignore[arg-type]


@pytest.mark.feature("A1", "U1", "U4")
def test_a_user_may_do_what_the_level_allows_and_nothing_else() -> None:
    acts: tuple[Act, ...] = ("backup", "restore", "view")
    for level, act in itertools.product(LEVELS, acts):
        expected = None if allows(level, act) else "not_included"
        assert permit(act, replace(FREE, level=level), NOW).refusal == expected


@pytest.mark.feature("U3")
def test_how_long_a_backup_stays_is_a_word_or_a_date() -> None:
    assert stay(None, NOW).text == "Currently Retained"
    assert (stay(NOW + 6 * DAY - HOUR, NOW).text, stay(NOW + 6 * DAY, NOW).days_left) == ("2026-05-07, 6 days left", 6)
    assert stay(NOW + HOUR, NOW).text == "2026-05-01, 1 day left"
    for past in (NOW, NOW - DAY):
        assert (stay(past, NOW).state, stay(past, NOW).text) == ("expired", "Expired")


@pytest.mark.feature("U6")
@pytest.mark.parametrize(
    ("attached", "held", "names"),
    [
        (["vda", "vdb"], [], {"vda": "Drive A", "vdb": "Drive B"}),
        (["vda", "vdc"], ["vdb"], {"vda": "Drive A", "vdb": "Drive B", "vdc": "Drive C"}),
        (["vda", "sda"], [], {"vda": "Drive A", "sda": "Drive B"}),
        (["sda"], ["vda"], {"sda": "Drive A", "vda": "Drive B"}),
        (["sdaa", "sdz"], [], {"sdaa": "Drive A", "sdz": "Drive Z"}),
        ([], [], {}),
    ],
)
def test_drives_are_called_by_letters(attached: list[str], held: list[str], names: dict[str, str]) -> None:
    assert drive_names(attached, held) == names
    assert list(drive_names(attached, held)) == list(names), "in order"


_disks = st.lists(st.from_regex(r"\A(vd|sd|hd)[a-z]{1,2}\Z|\Adisk[0-9]{1,2}\Z"), unique=True, max_size=40)


@pytest.mark.feature("U6")
@given(attached=_disks, held=_disks)
def test_no_two_drives_share_a_name(attached: list[str], held: list[str]) -> None:
    names = drive_names(attached, held)
    assert set(names) == {*attached, *held}
    assert len(set(names.values())) == len(names)


@pytest.mark.feature("U7")
def test_every_reason_has_a_word_and_a_sentence_that_ends_somewhere() -> None:
    words = {
        name.removeprefix("PORTAL_REFUSAL_").lower() for name in portal_pb2.PortalRefusal.DESCRIPTOR.values_by_name
    }
    assert set(ADVICE) == words - {"unspecified"}
    for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name:
        assert refusal_of(name.removeprefix("ERROR_REASON_")) in ADVICE
    assert refusal_of("SOMETHING_NEW") == "contact_support"
    for lasting in ("try_later", "backup_unusable", "contact_support", "locked"):
        assert "support" in ADVICE[lasting]


def test_only_the_end_is_all_of_it() -> None:
    assert [percent(*pair) for pair in ((0, 0), (1, 3), (3, 3), (9, 3), (-1, 3))] == [0, 33, 99, 99, 0]
