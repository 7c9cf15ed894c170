"""The inventory against libvirt's own test driver, whose domains all connections of one process share."""

import asyncio

import pytest

from agent import inventory as inventory_module
from agent.inventory import Inventory, Versions
from engine.hypervisor.connection import open_connection
from engine.hypervisor.domains import define

URI = "test:///default"
XML = "<domain type='test'><name>{}</name><memory>8192</memory><os><type>hvm</type></os></domain>"


@pytest.mark.feature("N1")
async def test_a_change_makes_a_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "QUIET_SECONDS", 0.05)
    inventory = Inventory(URI)
    inventory.start()
    try:
        await inventory.first_look(10)
        assert inventory.versions.libvirt
        assert inventory.domains is not None
        before, version = len(inventory.domains), inventory.version

        with open_connection(URI) as connection:
            domain = define(connection, XML.format("inventory-test"))
            async with asyncio.timeout(10):
                while inventory.version == version:
                    inventory.changed.clear()
                    await inventory.changed.wait()
            domain.handle.undefine()

        assert len(inventory.domains) == before + 1
        assert "inventory-test" in {one.name for one in inventory.domains}
    finally:
        inventory.stop()


async def test_without_libvirt_the_capability_is_empty(tmp_path) -> None:
    inventory = Inventory(f"qemu+unix:///system?socket={tmp_path}/nobody")
    inventory.start()
    try:
        await inventory.first_look(10)

        assert inventory.versions == Versions()
        assert inventory.domains is None
    finally:
        inventory.stop()
