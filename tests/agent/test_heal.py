"""Marks that nobody looks at any more are healed by the agent itself."""

import asyncio
import contextlib
import json
import os
import subprocess
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
    left, old, fresh = blank_domain([]), blank_domain([]), blank_domain([])
    folder = Config(run_folder=tmp_path).lock_folder
    folder.mkdir()
    guards = []
    for domain in (left, old, fresh):
        domain.handle.suspend()
        guards.append(subprocess.Popen(["sh", "-c", "read -r line", "guard", domain.uuid], stdin=subprocess.PIPE))
        mark = thaw_guard.mark_path(folder, domain.uuid)
        mark.write_text(json.dumps({"deeds": ["pause"], "guard": guards[-1].pid}))
    guards[0].kill()  # both an engine and its guard died
    guards[0].wait()
    past = time.time() - MARK_SECONDS - 1
    os.utime(thaw_guard.mark_path(folder, old.uuid), (past, past))
    config = Config(
        libvirt_uri=libvirtd.uri,
        run_folder=tmp_path,
        scratch_folder=tmp_path / "scratch",
        engine_command=(sys.executable, "-m", "engine.worker"),
    )

    async def agent() -> None:
        healing = asyncio.create_task(heal_marked(config))
        try:
            await asyncio.to_thread(wait_until, lambda: len(thaw_guard.marks(folder)) == 1, 30, "the marks to go")
        finally:
            healing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await healing

    try:
        asyncio.run(agent())
    finally:
        for guard in guards:
            guard.communicate()

    assert left.state()[0] == old.state()[0] == 1
    assert fresh.state()[0] == 3  # an engine is at work on it
    assert [one.uuid for one in thaw_guard.marks(folder)] == [fresh.uuid]
