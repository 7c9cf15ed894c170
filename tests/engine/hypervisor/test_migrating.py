"""A domain on its way to another hypervisor, on two real libvirtds: it is seen on both sides, and left alone (X15)."""

import contextlib
import threading
from pathlib import Path

import libvirt
import pytest

from engine.hypervisor import domains
from engine.hypervisor.connection import Connection
from tests.servers.guest import MIB, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until

FLAGS = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_NON_SHARED_DISK


@pytest.mark.feature("X15")
def test_a_migration_is_seen_while_it_lasts(
    libvirtd: Libvirtd, connection: Connection, blank_domain, tmp_path: Path
) -> None:
    disk = DiskFile("vda", tmp_path / "a.qcow2").create(64 * MIB)
    made = blank_domain([disk], running=True)
    made.write("vda", 0, 32 * MIB, 7)
    assert domains.migrating(connection) == frozenset()

    with Libvirtd(tmp_path / "other", like=libvirtd) as other:
        there = libvirt.open(other.uri)
        xml = made.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
        target = DiskFile("vda", tmp_path / "b.qcow2").create(64 * MIB)
        parameters = {
            "bandwidth": 1,
            "destination_xml": xml.replace(str(disk.path), str(target.path)),
            "migrate_disks": ["vda"],
        }

        def migrate() -> None:
            with contextlib.suppress(libvirt.libvirtError):  # it is called off below
                made.handle.migrate3(there, parameters, FLAGS)

        thread = threading.Thread(target=migrate)
        thread.start()
        try:
            wait_until(lambda: domains.migrating(connection) == {made.uuid}, 20, "the migration to be seen")
            assert domains.get_domain(connection, made.uuid).migrating
        finally:
            made.handle.abortJob()
            thread.join(20)
            there.close()
    assert domains.migrating(connection) == frozenset()
