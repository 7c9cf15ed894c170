"""The delaying proxy: what was sent before a connection is reset arrives before the reset, as on a real way."""

import socket
import struct
from contextlib import suppress

from tests.bench.delay import delayed
from tests.servers.sshd import free_port


def test_a_reset_arrives_behind_what_was_sent_before_it():
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        delayed(0.2, [port]) as address,
        socket.create_connection((address, port), 10) as client,
    ):
        server.settimeout(10)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            client.sendall(b"to be delivered")
            assert accepted.recv(1) == b"t"  # the proxy has read it
            client.sendall(b", and this")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()  # a reset
            found = b""
            with suppress(ConnectionResetError):  # or an end: the proxy does not tell the two apart
                while piece := accepted.recv(100):
                    found += piece
    assert found == b"o be delivered, and this"
