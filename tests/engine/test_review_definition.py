"""What a backup keeps of the domain's definition."""

import re
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.catalog import find_point
from engine.storage.local import LocalStorage
from engine.surroundings import keys_of
from engine.units import MIB
from tests.engine.aftermath import At
from tests.engine.rig import Rig, result
from tests.servers.guest import DiskFile


def stored_xml(rig: Rig, server_id: str, backup_id: str) -> str:
    with LocalStorage(str(rig.folder / "storage")) as storage:
        sealed = find_point(storage, server_id, backup_id, keys_of(rig.keys(server_id))).server.sealed
    assert sealed is not None
    return sealed.domain_xml


@pytest.mark.feature("M16")
def test_the_definition_is_that_of_the_instant_and_knows_every_disk(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    disks = [DiskFile(name, tmp_path / f"{name}.qcow2").create(4 * MIB) for name in ("vda", "vdb")]
    domain = blank_domain(disks[:1], elements="<features><acpi/></features>")
    rig = Rig.make(tmp_path, libvirtd.uri)

    def redefine() -> None:
        domain.connection.defineXML(domain.xml().replace("<devices>", "<description>later</description><devices>"))

    made = result(rig.run(report=At("read", redefine), backup=rig.backup_job(domain.uuid)))

    assert "later" in domain.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert "later" not in stored_xml(rig, domain.uuid, made["backup_id"])
    assert not any("vd" in warning for warning in rig.report.warnings)

    domain.handle.attachDeviceFlags(disks[1].xml(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    made = rig.back_up(domain.uuid)

    assert [one["disk"] for one in made["disks"]] == ["vda", "vdb"]
    assert any("vdb" in warning for warning in rig.report.warnings)
    xml = stored_xml(rig, domain.uuid, made["backup_id"])
    assert re.findall(r"<target dev='(\w+)'", xml) == ["vda", "vdb"]
    domain.connection.defineXML(xml)  # libvirt takes it for a next start
