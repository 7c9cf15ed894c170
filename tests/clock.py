"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """Tells `time`, which only `advance` changes."""

    def __init__(self, time: datetime = START) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> datetime:
        """Move on by some seconds and return the new time."""
        self.time += timedelta(seconds=seconds)
        return self.time
