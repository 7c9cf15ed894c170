"""A domain that is gone comes back from its backup, and nothing that belongs to another is written over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from engine.errors import TargetError
from engine.format.manifest import Definition
from engine.hypervisor.connection import Connection, open_connection
from engine.hypervisor.domains import list_domains
from engine.revive import define_anew
from engine.units import MIB
from tests.engine.rig import Rig, digest, reason, result
from tests.servers.guest import BlankDomain, DiskFile

pytestmark = pytest.mark.feature("T25")


@pytest.fixture
def connection(libvirtd: Any) -> Iterator[Connection]:
    with open_connection(libvirtd.uri) as opened:
        yield opened


def _gone(domain: BlankDomain) -> Definition:
    """Undefine a stopped domain and return what a backup would have kept of it."""
    xml = domain.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    return Definition(xml, "", {})


def test_a_deleted_server_comes_back(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    domain.write("vda", 3 * MIB, MIB, 7)
    made = rig.back_up(domain.uuid)
    expected = digest(disk.path, "qcow2")
    domain.handle.destroy()
    _gone(domain)
    disk.path.unlink()

    assert result(rig.restore(domain.uuid, made["backup_id"]))["server_started"] is False

    assert digest(disk.path, "qcow2") == expected
    assert not domain.handle.isActive()


@pytest.mark.parametrize("how", ["running", "stopped", "through a link", "as another disk"])
def test_an_image_that_another_domain_has_now_is_not_touched(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, how: str
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2").create(16 * MIB)
    domain = blank_domain([disk])
    rig = Rig.make(tmp_path, libvirtd.uri)
    made = rig.back_up(domain.uuid)
    domain.handle.destroy()
    _gone(domain)
    path = disk.path
    if how == "through a link":
        path = tmp_path / "link.qcow2"
        path.symlink_to(disk.path)
    blank_domain([DiskFile("vdb" if how == "as another disk" else "vda", path)], running=how == "running")
    before = disk.path.read_bytes()

    assert reason(rig.restore(domain.uuid, made["backup_id"])) == "TARGET_FAILED"

    assert disk.path.read_bytes() == before
    with pytest.raises(libvirt.libvirtError):
        _ = domain.handle


def test_an_image_that_is_there_is_not_written_over(tmp_path: Path, connection: Connection, blank_domain: Any) -> None:
    disks = [DiskFile(name, tmp_path / f"{name}.qcow2").create(8 * MIB) for name in ("vda", "vdb")]
    definition = _gone(blank_domain(disks, running=False))
    disks[0].path.unlink()
    before = disks[1].path.read_bytes()

    with pytest.raises(TargetError):
        define_anew(connection, definition, {"vda": 8 * MIB, "vdb": 8 * MIB})

    assert not disks[0].path.exists()
    assert disks[1].path.read_bytes() == before


@pytest.mark.parametrize("kind", ["block", "file"])
def test_a_volume_is_never_made(tmp_path: Path, connection: Connection, blank_domain: Any, kind: str) -> None:
    name = f"bm-{tmp_path.name}"
    disk = DiskFile("vda", Path("/dev") / name, "raw")
    definition = _gone(blank_domain([disk], running=False))
    xml = definition.domain_xml
    if kind == "block":
        xml = xml.replace("<disk type='file'", "<disk type='block'").replace("<source file=", "<source dev=")
    try:
        with pytest.raises(TargetError) as caught:
            define_anew(connection, Definition(xml, "", {}), {"vda": 8 * MIB})
        assert "must exist" in caught.value.facts["detail"]
        assert not disk.path.exists()
    finally:
        disk.path.unlink(missing_ok=True)


def test_what_was_made_goes_again_when_libvirt_refuses_the_definition(
    tmp_path: Path, connection: Connection, blank_domain: Any
) -> None:
    disk = DiskFile("vda", tmp_path / "vda.qcow2")
    definition = _gone(blank_domain([disk], running=False))
    xml = definition.domain_xml.replace("<name>", "<name>/")

    with pytest.raises(Exception, match="virDomainDefineXML"):
        define_anew(connection, Definition(xml, "", {}), {"vda": 8 * MIB})

    assert not disk.path.exists()
    assert all(disk.path != Path(one.path) for info in list_domains(connection) for one in info.disks)
