"""A virtual server's disk backed up, restored, verified and deleted over FTPS, with connections that are cut on the way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.spec import Settings
from engine.units import MIB
from tests.engine.aftermath import At, assert_host_is_clean, assert_only, assert_restores, assert_verifies
from tests.engine.rig import Rig, reason
from tests.servers.guest import DiskFile
from tests.servers.proxy import Proxy
from tests.servers.vsftpd import Vsftpd

LINE_HOST = "127.0.0.2"
pytestmark = [pytest.mark.feature("S13"), pytest.mark.feature("C12")]


def test_a_chain_is_made_restored_verified_and_deleted(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    domain = blank_domain([DiskFile("vda", tmp_path / "vda.qcow2").create(32 * MIB)])
    for number in range(12):
        domain.write("vda", number * MIB, MIB, number + 1)
    with Vsftpd(tmp_path) as server, Proxy(server.port, LINE_HOST, server.data_ports) as line:
        rig = Rig.make(tmp_path, libvirtd.uri)
        rig.settings = Settings(compression_level=0, workers=2)
        config = server.config(tmp_path / "storage", host=LINE_HOST, port=line.port)
        rig.target = replace(rig.target, local=None, ftp=config)
        first = rig.back_up(domain.uuid)
        for number in range(5, 25):
            domain.write("vda", number * MIB, MIB, number + 100)

        report = At("read", line.cut, 4 * MIB)
        outcome = rig.run(report=report, backup=rig.backup_job(domain.uuid, type="incremental"))

        assert report.fired.is_set()
        assert reason(outcome) == ""
        assert outcome.result is not None
        assert [one["type"] for one in outcome.result["disks"]] == ["incremental"]
        assert_host_is_clean(rig, domain)
        assert_only(tmp_path / "storage", domain.uuid, first, outcome.result)
        line.cut_after(6 * MIB, "down")
        assert_restores(rig, domain, outcome.result["backup_id"])
        assert_verifies(rig, domain)
        assert len(rig.reindex()) == 2
        assert reason(rig.delete(domain.uuid, outcome.result["backup_id"], first["backup_id"])) == ""
        assert_only(tmp_path / "storage", domain.uuid)
