"""A controller in this process, with the time in our hands: certificates that are renewed while it serves."""

import asyncio
import hashlib
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from clients import connect
from clients.gen.backupmanager.v1 import system_service_pb2, system_service_pb2_grpc
from controller import setup
from controller.config import Settings, load
from controller.errors import CannotStart
from controller.serving import Controller, Ports
from tests.clock import FakeClock
from tests.waiting import wait_until_async

DAY = timedelta(days=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    config = tmp_path / "controller.toml"
    config.write_text(f'state_folder = "{tmp_path / "state"}"\nlisten = "127.0.0.1:0"\nagent_listen = "127.0.0.1:0"\n')
    return load(config, {})


@asynccontextmanager
async def serving(settings: Settings, clock: FakeClock) -> AsyncIterator[tuple[Controller, Ports]]:
    controller = Controller(settings, clock, maintain_seconds=0.05)
    ports = await controller.start()
    try:
        yield controller, ports
    finally:
        await controller.stop()


def shown(port: int) -> x509.Certificate:
    """Return the certificate that a listener shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # its time is a clock's of ours
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as connection:
        found = connection.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found)


@pytest.mark.feature("N3")
async def test_a_server_certificate_is_renewed_without_a_restart(settings: Settings) -> None:
    made = await asyncio.to_thread(setup.initialize, settings)
    clock = FakeClock(datetime.now(UTC))
    async with serving(settings, clock) as (controller, ports):
        first = await asyncio.to_thread(shown, ports.api)
        address = f"127.0.0.1:{ports.api}"
        pem, fingerprint = await asyncio.to_thread(connect.fetch_authority, address)
        assert fingerprint == made.authority_fingerprint
        async with connect.channel(address, pem, token=made.secret) as channel:
            stub = system_service_pb2_grpc.SystemServiceStub(channel)
            await stub.GetVersion(system_service_pb2.GetVersionRequest())

            clock.advance((265 * DAY).total_seconds())

            async def renewed() -> bool:
                return (await asyncio.to_thread(shown, ports.api)) != first

            await wait_until_async(renewed, 10, "the new certificate")
            await stub.GetVersion(system_service_pb2.GetVersionRequest())  # on the connection of before
        second = await asyncio.to_thread(shown, ports.api)
        assert second.not_valid_after_utc > first.not_valid_after_utc + 200 * DAY
        assert controller.authority.fingerprint == fingerprint, "the root stays; who pinned it need not know"
        chain = controller.authority.server_pair.chain
        der = ssl.PEM_cert_to_DER_cert(pem)
        assert hashlib.sha256(der).hexdigest() == fingerprint
        assert pem.strip() in chain.decode()


async def test_a_start_that_fails_leaves_nothing_open(settings: Settings, tmp_path: Path) -> None:
    await asyncio.to_thread(setup.initialize, settings)
    clock = FakeClock(datetime.now(UTC))
    async with serving(settings, clock) as (_, ports):
        assert stat.S_IMODE(settings.ports_file.stat().st_mode) == 0o600
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", ports.api)
    async with taken:
        blocked = settings.model_copy(update={"listen": f"127.0.0.1:{ports.api}"})
        with pytest.raises(CannotStart, match="cannot listen"):
            await Controller(blocked, clock).start()
        assert not settings.ports_file.exists()
    async with serving(settings, clock):
        assert settings.ports_file.exists(), "the database's lock was given back"
