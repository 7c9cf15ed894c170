"""What a server's listing of a folder says, pure: bytes in, entries out. Nothing in it is believed beyond its shape.

    MLSD   modify=20261123132439;size=5;type=file; name            made for programs. Source: RFC 3659, 7
    LIST   -rw-r--r--   1 root  root   5 Nov 23 13:24 name         as `ls -l` shows it; most servers
           11-23-26  01:24PM              5 name                   as a DOS shell shows it
    NLST   name                                                    names alone: the rest is asked for each

A name with a line break in it looks like two lines. Where a line makes no sense, the entry before it is marked doubtful, and
whoever lists asks the server about that one by itself.
"""

import re
from calendar import timegm
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

ENTRIES_MAX = 200_000  # of one folder
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_UNIX = re.compile(
    r"(?P<kind>[a-zA-Z-])[rwxsStTlL-]{9}\S?\s+(?:\S+\s+){1,4}?(?P<size>\d+)\s+"
    r"(?P<month>[A-Za-z]{3})\s+(?P<day>\d{1,2})\s+(?P<clock>\d{1,2}:\d\d|\d{4})\s(?P<name>.+)"
)
_DOS = re.compile(
    r"(?P<month>\d\d)-(?P<day>\d\d)-(?P<year>\d{2,4})\s+(?P<hour>\d\d):(?P<minute>\d\d)(?P<half>[AP]M)?\s+"
    r"(?:(?P<folder><DIR>)\s+|(?P<size>\d+)\s)(?P<name>\S.*)"
)
_TOTAL = re.compile(r"\S+ \d+")  # the line before the entries, in the server's language


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a folder. `time` is Unix seconds, exact only from MLSD; None where nothing was said."""

    name: str
    folder: bool
    file: bool
    size: int
    time: float | None
    identity: str = ""  # MLSD's `unique`: the same for the same folder by whatever name
    doubtful: bool = False


def parse_mlsd(lines: list[str]) -> list[Listed]:
    """Return the entries of an answer to MLSD, without the folder itself and the one above."""
    found: list[Listed] = []
    for line in lines:
        text, _, name = line.partition(" ")
        facts = dict(fact.lower().split("=", 1) for fact in text.split(";") if "=" in fact)
        kind = facts.get("type", "")
        if not (text.endswith(";") and kind and name):
            _doubt(found)
            continue
        if kind in {"cdir", "pdir"}:
            continue
        size = int(facts["size"]) if facts.get("size", "").isdecimal() else 0
        doubtful = kind == "file" and not facts.get("size", "").isdecimal()
        identity = facts.get("unique", "")
        found.append(
            Listed(name, kind == "dir", kind == "file", size, parse_time(facts.get("modify", "")), identity, doubtful)
        )
    return found


def parse_list(lines: list[str], now: datetime) -> list[Listed] | None:
    """Return the entries of an answer to LIST, None if it has a form that we do not know.

    `now` decides which year a date without one belongs to. Times are taken as UTC; the server's may be another zone's.
    """
    found: list[Listed] = []
    strange = 0
    for position, line in enumerate(lines):
        entry = _unix(line, now) or _dos(line)
        if entry is not None:
            if entry.name not in {".", ".."}:
                found.append(entry)
        elif not (position == 0 and _TOTAL.fullmatch(line)) and line:
            strange += 1
            _doubt(found)
    return None if strange and not found else found


def parse_time(text: str) -> float | None:
    """Return MLSD's and MDTM's `YYYYMMDDHHMMSS[.fff]`, always UTC, as Unix seconds; None for anything else."""
    try:
        return float(timegm(datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timetuple()))
    except ValueError:
        return None


def _doubt(found: list[Listed]) -> None:
    if found:
        found[-1] = replace(found[-1], doubtful=True)


def _unix(line: str, now: datetime) -> Listed | None:
    match = _UNIX.fullmatch(line)
    if match is None:
        return None
    kind, name = match["kind"], match["name"]
    if kind == "l":
        name = name.partition(" -> ")[0]
    return Listed(name, kind == "d", kind == "-", int(match["size"]), _unix_time(match, now))


def _unix_time(match: re.Match[str], now: datetime) -> float | None:
    """Return a date with a year, or with a time of the day within the last year (and a day of other zones' future)."""
    try:
        month, day, clock = _MONTHS.index(match["month"].lower()) + 1, int(match["day"]), match["clock"]
        if ":" not in clock:
            return datetime(int(clock), month, day, tzinfo=UTC).timestamp()
        hour, minute = clock.split(":")
        years = (now.year + 1, now.year, now.year - 1)
        times = (
            datetime(year, month, day, int(hour), int(minute), tzinfo=UTC)
            for year in years
            if _is_day(year, month, day)
        )
        return next(time for time in times if time <= now + timedelta(days=1)).timestamp()
    except (ValueError, StopIteration):
        return None


def _is_day(year: int, month: int, day: int) -> bool:
    return (month, day) != (2, 29) or (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))


def _dos(line: str) -> Listed | None:
    match = _DOS.fullmatch(line)
    if match is None:
        return None
    time = None
    year, hour = int(match["year"]), int(match["hour"])
    if match["half"]:
        hour = hour % 12 + (12 if match["half"] == "PM" else 0)
    try:
        moment = datetime(
            year + 2000 if year < 100 else year,
            int(match["month"]),
            int(match["day"]),
            hour,
            int(match["minute"]),
            tzinfo=UTC,
        )
        time = moment.timestamp()
    except ValueError:
        pass
    folder = match["folder"] is not None
    return Listed(match["name"], folder, not folder, int(match["size"] or 0), time)
