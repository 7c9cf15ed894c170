"""The watch over a backup job of a running domain."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import HypervisorError, NbdDisconnected, ScratchShort
from engine.hypervisor.backup_job import begin, running_job
from engine.hypervisor.connection import Connection, open_connection
from engine.source import scratch as scratches
from engine.source import watch
from engine.units import MIB
from engine.work import Stop
from tests.servers.guest import DiskFile
from tests.waiting import wait_until


@pytest.fixture
def connection(libvirtd: Any) -> Iterator[Connection]:
    with open_connection(libvirtd.uri) as opened:
        yield opened


@pytest.mark.feature("N15")
@pytest.mark.parametrize("fault", ["short", "unreadable"])
def test_a_job_without_room_ends_while_its_block_stands_still(
    connection: Connection, blank_domain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(8 * MIB)])
    domain = connection.domain(made.uuid)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(watch, "LIFE_SECONDS", 0.05)
    if fault == "short":
        monkeypatch.setattr(scratches, "RESERVE_BYTES", 1 << 62)

    def block() -> None:
        with begin(domain, {"vda": None}, "", tmp_path / "job") as job:
            with watch.watched(job, {}, scratch, Stop()):
                if fault == "unreadable":
                    scratch.rmdir()
                wait_until(lambda: running_job(domain) is None, 10, "the end of the job")
                raise NbdDisconnected(operation="read", detail="what a reader sees when it comes back from an upload")

    with pytest.raises(ScratchShort if fault == "short" else HypervisorError):
        block()
