"""When a webhook's delivery is tried again, and when it is given up.

    attempt   1   2    3    4    5     6    7    8     9    10   11   12
    wait      10s 20s  40s  80s  160s  5m   11m  21m   43m  85m  171m      each by chance up to a quarter more

Half a minute bridges a receiver's restart; five hours and more, a night's failure that somebody repairs in the morning. The chance
keeps deliveries that failed together from coming back together.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

ATTEMPTS_MAX = 12
FIRST_WAIT = timedelta(seconds=10)
JITTER = 0.25
HOLD_MAX = timedelta(
    hours=1
)  # that a receiver's Retry-After is obeyed for: it may be wrong, and what waits is kept in rows


def wait_after(attempts: int, luck: float) -> timedelta | None:
    """Return how long to wait after so many failed attempts, None to give up. `luck` is from 0 to 1."""
    if attempts >= ATTEMPTS_MAX:
        return None
    return FIRST_WAIT * (1 << (attempts - 1)) * (1 + JITTER * luck)


def hold_of(retry_after: str, now: datetime) -> timedelta:
    """Return for how long a receiver wants nothing more, zero for no such wish, at most HOLD_MAX.

    `retry_after` is what it answered, seconds or a date. Source: RFC 9110, 10.2.3.
    """
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:9]), HOLD_MAX.total_seconds()))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return timedelta(0)
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta(0)), HOLD_MAX)
