"""What servers' listings say: the forms that real ones have, and lines that no server should send."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.storage.ftp_list import parse_list, parse_mlsd, parse_time

pytestmark = pytest.mark.feature("S13")

NOW = datetime(2026, 11, 23, 13, 24, tzinfo=UTC)


def listed(*lines: str) -> list[tuple[str, bool, bool, int]]:
    found = parse_list(list(lines), NOW)
    assert found is not None
    return [(one.name, one.folder, one.file, one.size) for one in found]


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("-rw-r--r--    1 0        0               5 Nov 23 13:24 file", ("file", False, True, 5)),  # vsftpd
        (
            "drwxr-xr-x   2 root     root         4096 Nov 23 13:24 dir",
            ("dir", True, False, 4096),
        ),  # pyftpdlib, ProFTPD
        ("-rw-------    1 1000 users 34359738368 Jan  2  2024 0000.data", ("0000.data", False, True, 1 << 35)),
        ("-rw-r--r--+   1 ftp ftp          12 Feb 29 00:01 a.b", ("a.b", False, True, 12)),  # with an access list
        ("-rwxrwxrwx   1 owner    group             7 Mar 10 2025 file", ("file", False, True, 7)),  # IIS in Unix style
        ("lrwxrwxrwx    1 0        0              11 Nov 23 13:24 link -> /etc/passwd", ("link", False, False, 11)),
        ("prw-r--r--    1 0        0               0 Nov 23 13:24 pipe", ("pipe", False, False, 0)),
        (
            "-rw-r--r--    1 0        0               0 Nov 23 13:24  led by a blank",
            (" led by a blank", False, True, 0),
        ),
        ("11-23-26  01:24PM                    5 file", ("file", False, True, 5)),
        ("11-23-2026  01:24AM       <DIR>          dir", ("dir", True, False, 0)),
        ("11-23-26  13:24                 12 file", ("file", False, True, 12)),
    ],
)
def test_a_line_of_a_real_server(line, entry):
    assert listed(line) == [entry]


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Nov 23 13:24", datetime(2026, 11, 23, 13, 24, tzinfo=UTC)),
        ("Nov 24 03:00", datetime(2026, 11, 24, 3, 0, tzinfo=UTC)),  # a zone that is ahead
        ("Nov 25 00:00", datetime(2025, 11, 25, 0, 0, tzinfo=UTC)),
        ("Dec 31 23:59", datetime(2025, 12, 31, 23, 59, tzinfo=UTC)),
        ("Jan  2  2024", datetime(2024, 1, 2, tzinfo=UTC)),
        ("Nou 23 13:24", None),
    ],
)
def test_a_date_without_a_year_is_the_last_such(date, expected):
    found = parse_list([f"-rw-r--r-- 1 a b 5 {date} file"], NOW)
    assert found is not None
    assert found[0].time == (None if expected is None else expected.timestamp())


def test_a_leap_day_belongs_to_a_year_that_has_one():
    found = parse_list(["-rw-r--r-- 1 a b 5 Feb 29 10:00 file"], datetime(2029, 1, 1, tzinfo=UTC))
    assert found is not None
    assert found[0].time == datetime(2028, 2, 29, 10, 0, tzinfo=UTC).timestamp()


def test_the_line_above_the_entries_is_none():
    assert listed("total 12", "-rw-r--r-- 1 a b 5 Nov 23 13:24 file") == [("file", False, True, 5)]
    assert listed("insgesamt 12") == []
    assert listed() == []


def test_a_listing_of_an_unknown_form_is_told_from_an_empty_one():
    assert parse_list(["file;1   5  23-NOV-2026 13:24", "other;1  5  23-NOV-2026"], NOW) is None
    assert parse_list([], NOW) == []


def test_a_name_of_two_lines_makes_its_beginning_doubtful():
    found = parse_list(["-rw-r--r-- 1 a b 5 Nov 23 13:24 line", "break", "-rw-r--r-- 1 a b 5 Nov 23 13:24 sure"], NOW)
    assert found is not None
    assert [(one.name, one.doubtful) for one in found] == [("line", True), ("sure", False)]
    told = parse_mlsd(["type=file;size=5; line", "break", "type=file;size=5; sure"])
    assert [(one.name, one.doubtful) for one in told] == [("line", True), ("sure", False)]


def test_what_mlsd_tells_is_exact():
    found = parse_mlsd(
        [
            "type=cdir;modify=20261123132439; /s",
            "type=pdir;modify=20261123132439; ..",
            "modify=20261123132439.123;perm=radfwMT;size=34359738368;type=file;unique=fe00g1; 0000.data",
            "Modify=20261123132439;Type=dir;Unique=fe00g2; a b",
            "type=OS.unix=slink:/etc/passwd;size=3; link",
            "type=file; unsized",
        ]
    )
    assert [(one.name, one.folder, one.file, one.size) for one in found] == [
        ("0000.data", False, True, 1 << 35),
        ("a b", True, False, 0),
        ("link", False, False, 3),
        ("unsized", False, True, 0),
    ]
    assert found[0].time == datetime(2026, 11, 23, 13, 24, 39, tzinfo=UTC).timestamp()
    assert [one.identity for one in found][:2] == ["fe00g1", "fe00g2"]
    assert [one.doubtful for one in found] == [False, False, False, True]


@pytest.mark.parametrize("text", ["", "2026", "20261340000000", "yesterday", "2026112313243x"])
def test_what_is_no_time_is_none(text):
    assert parse_time(text) is None


@given(st.lists(st.text(max_size=80), max_size=20))
def test_no_listing_breaks_the_reading(lines):
    for found in (parse_mlsd(lines), parse_list(lines, NOW) or []):
        assert all(one.name and one.size >= 0 for one in found)


@given(st.text(alphabet="drwx-l0123456789 :NovJanb;=typesizmdf.,\u0660", max_size=80))
def test_no_line_of_the_right_letters_does_either(line):
    parse_mlsd([line])
    parse_list([line, "-rw-r--r-- 1 a b 5 Nov 23 13:24 file"], NOW)
