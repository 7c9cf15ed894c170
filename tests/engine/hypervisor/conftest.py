"""A connection of the engine to the private libvirtd."""

from collections.abc import Iterator

import pytest

from engine.hypervisor.connection import Connection, open_connection
from tests.servers.libvirtd import Libvirtd


@pytest.fixture
def connection(libvirtd: Libvirtd) -> Iterator[Connection]:
    with open_connection(libvirtd.uri) as opened:
        yield opened
