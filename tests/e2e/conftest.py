"""A stress world that the tests of one file share: its controller, agent and sshd start once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.stress import StressWorld


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, libvirtd: Any
) -> AsyncIterator[StressWorld]:
    """A world with the file's `SETTINGS`, if any; a file marks its tests with `asyncio(loop_scope="module")` and one xdist group."""
    settings = getattr(request.module, "SETTINGS", {})
    async with StressWorld(tmp_path_factory.mktemp("world") / "w", libvirtd, **settings) as world:
        yield world
