"""Waiting for a condition with a deadline, so that no test sleeps for luck."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of `condition`, asked every 20 ms; after `seconds` raise TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(_POLL_SECONDS)


async def wait_until_async(condition: Callable[[], Awaitable[T]], seconds: float, what: str) -> T:
    """Do as `wait_until` does with a coroutine function, leaving the event loop to others meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        await asyncio.sleep(_POLL_SECONDS)
