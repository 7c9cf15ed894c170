"""Marks that nobody looks at any more are healed by the agent itself."""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config
from agent.heal import MARK_SECONDS, heal_marked
from engine.hypervisor import thaw_guard
from tests.waiting import wait_until


@pytest.mark.feature("C11")
def test_a_guest_left_paused_by_an_engine_that_ended_is_brought_back(
    libvirtd: Any, blank_domain: Any, tmp_path: Path
) -> None:
    left, fresh = blank_domain([]), blank_domain([])
    folder = Config(run_folder=tmp_path).lock_folder
    folder.mkdir()
    for domain in (left, fresh):
        domain.handle.suspend()
        mark = thaw_guard.mark_path(folder, domain.uuid)
        mark.write_text(json.dumps({"deeds": ["pause"], "guard": 1}))
    old = time.time() - MARK_SECONDS - 1
    os.utime(thaw_guard.mark_path(folder, left.uuid), (old, old))
    config = Config(
        libvirt_uri=libvirtd.uri,
        run_folder=tmp_path,
        scratch_folder=tmp_path / "scratch",
        engine_command=(sys.executable, "-m", "engine.worker"),
    )

    async def agent() -> None:
        healing = asyncio.create_task(heal_marked(config))
        try:
            mark = thaw_guard.mark_path(folder, left.uuid)
            await asyncio.to_thread(wait_until, lambda: not mark.exists(), 30, "the mark to go")
        finally:
            healing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await healing

    asyncio.run(agent())

    assert left.state()[0] == 1
    assert fresh.state()[0] == 3  # an engine is at work on it
    assert [one.uuid for one in thaw_guard.marks(folder)] == [fresh.uuid]
