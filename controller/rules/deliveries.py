"""When a webhook's delivery is tried again, and when it is given up.

    attempt   1   2    3    4    5     6    7    8     9    10   11   12
    wait      10s 20s  40s  80s  160s  5m   11m  21m   43m  85m  171m      each by chance up to a quarter more

Half a minute bridges a receiver's restart; five hours and more, a night's failure that somebody repairs in the morning. The chance
keeps deliveries that failed together from coming back together.
"""

from datetime import timedelta

ATTEMPTS_MAX = 12
FIRST_WAIT = timedelta(seconds=10)
JITTER = 0.25


def wait_after(attempts: int, luck: float) -> timedelta | None:
    """Return how long to wait after so many failed attempts, None to give up. `luck` is from 0 to 1."""
    if attempts >= ATTEMPTS_MAX:
        return None
    return FIRST_WAIT * (1 << (attempts - 1)) * (1 + JITTER * luck)
