"""Restores that cannot begin, or are not wanted any more."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import Cancelled
from engine.rebuild import rebuild
from engine.source.export import export_image
from engine.spec import Settings
from engine.storage.local import LocalStorage
from engine.target import NbdTarget
from engine.units import MIB
from engine.work import Work
from tests.engine.rig import RecordingReport, Rig, digest, reason
from tests.servers.guest import DiskFile


@pytest.mark.feature("M15")
def test_no_disk_is_touched_when_another_cannot_be_opened(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disks = [
        DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB),
        DiskFile("vdb", tmp_path / "vdb.raw", "raw").create(16 * MIB),
    ]
    domain = blank_domain(disks)
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 0, MIB, 1)
    made = rig.back_up(domain.uuid)
    domain.write("vda", 0, MIB, 2)
    domain.handle.destroy()
    before = digest(disks[0].path, "qcow2")

    other = blank_domain([disks[1]])

    outcome = rig.restore(domain.uuid, made["backup_id"])

    assert reason(outcome) == "VM_BUSY"
    assert digest(disks[0].path, "qcow2") == before
    other.close()
    assert reason(rig.restore(domain.uuid, made["backup_id"])) == ""
    assert digest(disks[0].path, "qcow2") != before


@pytest.mark.feature("M15")
def test_a_cancel_ends_a_restore_whose_image_hangs(tmp_path: Path) -> None:
    disk = DiskFile("vda", tmp_path / "vda.raw", "raw").create(MIB)
    work = Work(RecordingReport(), Settings())
    manifest: Any = SimpleNamespace(layers=(), size_bytes=0, name="none")  # only what is beyond it, and the flush
    with export_image(str(disk.path), "raw", writable=True) as export:
        target = NbdTarget(export.socket, export.name, export.size_bytes)
        os.kill(export.pid, signal.SIGSTOP)
        try:
            canceller = threading.Timer(0.3, work.stop.set)
            canceller.start()
            begun = time.monotonic()
            with pytest.raises(Cancelled):
                rebuild(LocalStorage(str(tmp_path)), manifest, None, target, work)
            assert time.monotonic() - begun < 10
            canceller.join()
        finally:
            os.kill(export.pid, signal.SIGCONT)
