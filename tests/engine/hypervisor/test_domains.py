"""The inventory, on a libvirtd with domains of every kind of disk."""

import subprocess
from pathlib import Path

import pytest

from engine.errors import DomainNotFound, HypervisorError
from engine.hypervisor import domains
from engine.hypervisor.connection import Connection
from tests.servers.guest import AGENT_CHANNEL, MIB, BlankDomain, DiskFile
from tests.waiting import wait_until


@pytest.mark.feature("T10")
def test_each_disk_says_whether_and_why_not(connection: Connection, blank_domain, tmp_path: Path) -> None:
    disks = [
        DiskFile("vda", tmp_path / "a.qcow2").create(64 * MIB),
        DiskFile("vdb", tmp_path / "b.raw", "raw").create(8 * MIB),
        DiskFile("vdc", tmp_path / "c.qcow2").create(4 * MIB, "-o", "compat=0.10"),
        DiskFile("sda", tmp_path / "d.qcow2", bus="scsi").create(2 * MIB),
    ]
    iso = tmp_path / "e.iso"
    iso.write_bytes(bytes(MIB))
    shared, fixed, passing = (
        DiskFile(name, tmp_path / f"{name}.raw", "raw").create(MIB) for name in ("vde", "vdf", "vdg")
    )
    made = blank_domain(
        disks,
        running=False,
        devices=f"""
        <disk type='file' device='cdrom'><source file='{iso}'/><target dev='hdc' bus='ide'/></disk>
        <disk type='file' device='cdrom'><target dev='hdd' bus='ide'/></disk>
        <disk type='file' device='floppy'><source file='{iso}'/><target dev='fda' bus='fdc'/></disk>
        {shared.xml().replace("</disk>", "<shareable/></disk>")}
        {fixed.xml().replace("</disk>", "<readonly/></disk>")}
        {passing.xml().replace("</disk>", "<transient/></disk>")}
        <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'>
          <host name='127.0.0.1'/></source><target dev='vdh' bus='virtio'/></disk>
        <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/storpool/x'/>
          <target dev='vdi' bus='virtio'/></disk>""",
    )
    info = domains.get_domain(connection, made.uuid)
    found = {disk.target: disk for disk in info.disks}
    assert [disk.target for disk in info.eligible_disks] == ["vda", "vdb", "vdc", "sda"]
    assert [disk.holds_bitmaps for disk in info.eligible_disks] == [True, False, False, True]
    assert [disk.size_bytes // MIB for disk in info.eligible_disks] == [64, 8, 4, 2]
    assert found["sda"].bus == "scsi"
    assert found["vda"].path == str(disks[0].path)
    for target, word in {
        "hdc": "cdrom",
        "hdd": "cdrom",
        "fda": "floppy",
        "vde": "shared",
        "vdf": "read-only",
        "vdg": "transient",
        "vdh": "rbd",
        "vdi": "StorPool",
    }.items():
        assert word in found[target].unsupported
        assert not found[target].holds_bitmaps


@pytest.mark.feature("T10")
def test_states_agent_and_serial(connection: Connection, blank_domain, tmp_path: Path) -> None:
    channel = f"<channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel>"
    disk = DiskFile("vda", tmp_path / "a.qcow2").create(MIB)
    running = blank_domain([disk], devices=channel)
    info = domains.get_domain(connection, running.name)
    assert (info.state, info.persistent, info.active, info.guest_agent) == ("running", True, True, "configured")
    assert info.disks[0].alias == "virtio-disk0"
    running.handle.suspend()
    assert domains.get_domain(connection, running.uuid).state == "paused"
    stopped = blank_domain([], running=False)
    info = domains.get_domain(connection, stopped.uuid)
    assert (info.state, info.active, info.guest_agent) == ("stopped", False, "absent")
    transient = blank_domain([], persistent=False)
    assert not domains.get_domain(connection, transient.uuid).persistent
    names = [one.name for one in domains.list_domains(connection)]
    assert {running.name, stopped.name, transient.name} <= set(names)
    assert names == sorted(names)


def test_an_image_that_is_missing_has_no_size_and_is_not_skipped(
    connection: Connection, blank_domain, tmp_path
) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "gone.qcow2")], running=False)
    (disk,) = domains.get_domain(connection, made.uuid).disks
    assert (disk.size_bytes, disk.unsupported, disk.holds_bitmaps) == (0, "", False)


@pytest.mark.feature("T25")
def test_the_definition_makes_the_domain_anew_with_secrets_and_nvram(
    connection: Connection, blank_domain, tmp_path
) -> None:
    nvram = tmp_path / "vars.fd"
    nvram.write_bytes(b"variables" * 100)
    made = blank_domain(
        [DiskFile("vda", tmp_path / "a.qcow2").create(MIB)],
        running=False,
        os=f"<loader readonly='yes' type='pflash'>{tmp_path}/code.fd</loader><nvram>{nvram}</nvram>",
        elements="<features><acpi/></features>",  # libvirt wants it beside UEFI
        devices="<graphics type='vnc' port='-1' passwd='s3cr3t'/>",
    )
    domain = connection.domain(made.uuid)
    xml = domains.definition(domain)
    assert "s3cr3t" in xml
    assert domains.nvram(domain) == b"variables" * 100
    made.handle.undefineFlags(8)  # VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    with pytest.raises(DomainNotFound):
        connection.domain(made.uuid)
    again = domains.define(connection, xml)
    assert (again.uuid, again.name) == (made.uuid, made.name)
    assert domains.definition(again) == xml
    nvram.unlink()
    assert domains.nvram(again) is None


@pytest.mark.feature("T25")
def test_the_definition_of_a_running_domain_is_for_its_next_start(
    connection: Connection, blank_domain, tmp_path
) -> None:
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    domain = connection.domain(made.uuid)
    assert "<alias" not in domains.definition(domain)
    assert domains.nvram(domain) is None


def test_a_definition_with_entities_is_refused() -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><domain><os><nvram>&b;</nvram></os></domain>'
    with pytest.raises(HypervisorError):
        domains.nvram_path(bomb)
    with pytest.raises(HypervisorError):
        domains.nvram_path("<domain>")


@pytest.mark.feature("M15")
def test_a_domain_that_does_not_hear_is_ended_after_the_grace(connection: Connection, blank_domain) -> None:
    made = blank_domain([])  # without a system nobody answers the button
    domain = connection.domain(made.uuid)
    assert not domains.shut_down(domain, 0.3)
    assert not domains.is_active(domain)
    assert domains.shut_down(domain, 0.3)  # it is down already
    domains.start(domain)
    domains.start(domain)
    assert domains.state_of(domain) == "running"
    made.handle.suspend()
    assert not domains.shut_down(domain, 60)  # a paused guest is not waited for
    made.close()
    assert not domains.is_active(domain)


@pytest.mark.feature("M15")
def test_a_guest_with_a_system_shuts_down_by_itself(connection: Connection, real_guest, tmp_path: Path) -> None:
    guest = real_guest()
    guest.write_file("/data1/last", "words")
    domain = connection.domain(guest.uuid)
    assert domains.domain_info(domain).guest_agent == "connected"
    assert domains.shut_down(domain, 30)
    raw = tmp_path / "a.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(guest.disks[0].path), str(raw)], check=True)
    assert b"words" in raw.read_bytes()


def test_a_domain_without_a_system_is_running_after_a_start(connection: Connection, blank_domain) -> None:
    made: BlankDomain = blank_domain([], running=False)
    domains.start(connection.domain(made.uuid))
    wait_until(lambda: made.state()[0] == 1, 5, "the domain to run")
