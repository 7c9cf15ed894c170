"""From an SFTP storage's settings to a connection that has proven itself, and the sessions on it.

    resolve ─► connect (from bind_address) ─► handshake ─► host key as pinned? ─► log in ─► SFTP session(s)

Each arrow is a step with its own name in the error. The host key is compared before anything of ours is sent. A timer
cuts the socket when the whole of it takes too long, so that no wait inside the SSH library needs a limit of its own.
"""

import base64
import binascii
import hashlib
import io
import logging
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidSpec, StorageHostKeyChanged, StorageLoginFailed, StorageUnreachable
from engine.spec import SftpConfig
from engine.storage import sftp_library
from engine.storage.sftp_wire import Lost, Wire
from engine.storage.trouble import cause_of
from engine.units import KIB, MIB

if TYPE_CHECKING:
    from paramiko import PKey, Transport

# AES-GCM first: 1.8 times the speed of paramiko's own first choice (CTR and a MAC) here, 3.7 against 5.0 ms CPU per MiB.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
# What the server may send ahead of our reading. No memory by itself: the reads under way bound it. Larger ones were slow.
_WINDOW_BYTES = 16 * MIB
_PACKET_BYTES = 256 * KIB
_KEEPALIVE_SECONDS = 15
# One connection asks for few sessions: OpenSSH allows ten (MaxSessions), and each is a process on the server.
SESSIONS_MAX = 4


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for a connection, for any sign of life, for the server's disk, and how to try again."""

    connect_seconds: float = 15
    stall_seconds: float = 120
    sync_seconds: float = 900  # an fsync of 32 GiB on a slow disk answers nothing until it is done
    attempts: int = 5
    pause_seconds: float = 0.5  # before the second attempt; doubles each time
    pause_seconds_max: float = 30
    # For an upload or a read that has come some way: a server that is being rebooted is back by then.
    enduring_attempts: int = 14
    enduring_seconds: float = 300


BRIEF = Patience(
    connect_seconds=4, stall_seconds=4, sync_seconds=4, attempts=1, enduring_attempts=1
)  # somebody waits for us to end


class Connection:
    """A logged-in SSH connection with up to SESSIONS_MAX SFTP sessions. Any thread may call any method.

    More than one session because a session's server answers in order: behind an upload's fsync everything else would wait.
    """

    def __init__(self, transport: "Transport", sock: socket.socket, host_key: str, patience: Patience) -> None:
        self.host_key = host_key
        self._transport, self._socket, self._patience = transport, sock, patience
        self._lock = threading.Lock()
        self._wires: list[Wire] = []
        self._sessions_max = SESSIONS_MAX
        self._wires.append(self._open_wire())

    @property
    def alive(self) -> bool:
        return self._transport.is_active() and not any(wire.lost for wire in self._wires)

    def wire(self) -> Wire:
        """Return the session with the fewest users for a short request."""
        return min(self._wires, key=lambda wire: wire.users)

    def acquire(self) -> Wire:
        """Return a session for an upload or a reader, a new one while there may be more; `release` gives it back."""
        with self._lock:
            wire = self.wire()
            if wire.users and len(self._wires) < self._sessions_max:
                try:
                    wire = self._open_wire()
                    self._wires.append(wire)
                except Lost:
                    if not self.alive:
                        raise
                    self._sessions_max = len(self._wires)  # the server allows fewer than we would like
            wire.users += 1
            return wire

    def release(self, wire: Wire) -> None:
        with self._lock:
            wire.users -= 1

    def cut(self) -> None:
        """End everything at once: every thread blocked on this connection gets Lost."""
        shut(self._socket)

    def close(self) -> None:
        """Cut the connection and wait for its thread, which notices at once."""
        self.cut()
        self._transport.close()
        self._socket.close()
        self._transport.join(self._patience.connect_seconds)

    def _open_wire(self) -> Wire:
        import paramiko

        try:
            channel = self._transport.open_session(_WINDOW_BYTES, _PACKET_BYTES, timeout=self._patience.connect_seconds)
            channel.invoke_subsystem("sftp")
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Lost(f"no SFTP session: {reason_of(error)}") from error
        return Wire(channel, self._patience.stall_seconds, self.cut)


class Dialer:
    """Makes connections for one storage. `dial` may run in one thread at a time; `interrupt` comes from any other."""

    def __init__(self, config: SftpConfig, label: str, patience: Patience) -> None:
        self.host_key = normal_host_key(config.host_key)
        self._config, self._label, self._patience = config, label, patience
        self._key: PKey | None = None
        self._socket: socket.socket | None = None
        self._interrupted = False
        self._step = ""
        self._late = threading.Event()  # the last dial took too long

    def dial(self) -> Connection:
        """Return a new connection. Raises StorageUnreachable, StorageLoginFailed or StorageHostKeyChanged."""
        if self._key is None:
            self._key = load_key(self._config, self._label)
        self._late.clear()
        addresses = self._resolve()
        sock = self._connect(addresses)
        timer = threading.Timer(self._patience.connect_seconds, self._time_out, (sock,))
        timer.daemon = True
        timer.start()
        try:
            return self._log_in(sock)
        except BaseException:
            shut(sock)
            sock.close()
            raise
        finally:
            timer.cancel()
            self._socket = None

    def interrupt(self) -> None:
        self._interrupted = True
        if (sock := self._socket) is not None:
            shut(sock)

    def unreachable(self, detail: str, cause: str = "") -> StorageUnreachable:
        """Return the error of the step that `dial` is at; `cause` as remedies.py names it."""
        return StorageUnreachable(storage=self._label, step=self._step, detail=detail, cause=cause)

    # ---- steps ----------------------------------------------------------------------------------------------------------

    def _begin(self, step: str) -> None:
        self._step = step
        if self._interrupted:
            raise self.unreachable("interrupted")

    def _resolve(self) -> list[tuple[Any, ...]]:
        """Look the host up in a thread of its own: the C library's resolver takes no time-out and no interrupt."""
        self._begin("resolve")
        found: list[list[tuple[Any, ...]] | OSError] = []

        def look_up() -> None:
            try:
                found.append(list(socket.getaddrinfo(self._config.host, self._config.port, type=socket.SOCK_STREAM)))
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA refuses
                found.append(error if isinstance(error, OSError) else OSError(str(error)))

        thread = threading.Thread(target=look_up, name="sftp-resolve", daemon=True)
        thread.start()
        thread.join(self._patience.connect_seconds)
        if not found:
            raise self.unreachable(f"no answer for {self._patience.connect_seconds:g} seconds", "dns")
        if isinstance(found[0], OSError):
            raise self.unreachable(found[0].strerror or reason_of(found[0]), "dns") from found[0]
        return found[0]

    def _connect(self, addresses: list[tuple[Any, ...]]) -> socket.socket:
        """Return a connected socket to the first address that answers."""
        self._begin("connect")
        failure: OSError | None = None
        if source := self._config.bind_address:
            wanted = socket.AF_INET6 if ":" in source else socket.AF_INET
            addresses = [one for one in addresses if one[0] == wanted]
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                self._prepare(sock)
                self._begin("connect")
                sock.connect(address)
            except OSError as error:
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            return sock
        detail = "no address" if failure is None else failure.strerror or reason_of(failure)
        cause = "no_route" if failure is None else cause_of(failure)
        raise self.unreachable(f"{self._config.host} port {self._config.port}: {detail}", cause) from failure

    def _prepare(self, sock: socket.socket) -> None:
        sock.settimeout(self._patience.connect_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel gives up on a peer that takes nothing for this long, a closed window included. Source: tcp(7).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.stall_seconds * 1000))
        if self._config.bind_address:
            self._step = f"bind to {self._config.bind_address}"
            sock.bind((self._config.bind_address, 0))
        self._socket = sock

    def _log_in(self, sock: socket.socket) -> Connection:
        import paramiko

        self._begin("handshake")
        try:
            transport = paramiko.Transport(sock)
            _quiet(transport)
            self._prefer(transport)
            transport.start_client()
            host_key = self._check_host_key(transport.get_remote_server_key())
            self._begin("login")
            self._authenticate(transport)
            transport.set_keepalive(_KEEPALIVE_SECONDS)
            self._begin("open SFTP")
            return Connection(transport, sock, host_key, self._patience)
        except (paramiko.SSHException, OSError, EOFError, Lost) as error:
            late, cause = self._late.is_set(), cause_of(error) or "lost"
            raise self.unreachable(self._detail(error), "timed_out" if late else cause) from error

    def _prefer(self, transport: "Transport") -> None:
        """Put fast ciphers first, and the type of the pinned host key: a server that has several then shows that one."""
        options = transport.get_security_options()
        options.ciphers = [name for name in _CIPHERS if name in options.ciphers]
        kind = self.host_key.partition(" ")[0]
        algorithms = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
        known = tuple(options.key_types)
        options.key_types = [name for name in algorithms if name in known] + [
            name for name in known if name not in algorithms
        ]

    def _check_host_key(self, key: "PKey") -> str:
        seen = f"{key.get_name()} {key.get_base64()}"
        if self.host_key and seen != self.host_key:
            raise StorageHostKeyChanged(
                storage=self._label, seen=host_key_fingerprint(seen), pinned=host_key_fingerprint(self.host_key)
            )
        self.host_key = seen  # learnt once, it is pinned for every connection after this one
        return seen

    def _authenticate(self, transport: "Transport") -> None:
        import paramiko

        assert self._key is not None
        try:
            missing = transport.auth_publickey(self._config.username, self._key)
        except paramiko.AuthenticationException as error:
            if not transport.is_active():  # cut in the middle: says nothing about the key
                raise
            raise StorageLoginFailed(
                storage=self._label,
                detail=f"the server does not accept this key for user {self._config.username}",
                cause="key",
            ) from error
        if missing:
            raise StorageLoginFailed(storage=self._label, detail=f"the server also wants {', '.join(missing)}")

    def _time_out(self, sock: socket.socket) -> None:
        self._late.set()
        self._step += f" (not done within {self._patience.connect_seconds:g} seconds)"
        shut(sock)

    def _detail(self, error: BaseException) -> str:
        return "interrupted" if self._interrupted else reason_of(error)


# ---- keys ---------------------------------------------------------------------------------------------------------------


def load_key(config: SftpConfig, label: str) -> "PKey":
    """Return the private key of `config`: RSA, ECDSA or Ed25519, in OpenSSH's or a PEM form. Nothing of it is in an error."""
    sftp_library.load()
    import paramiko
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    kinds = (
        (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
        (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
        (rsa.RSAPrivateKey, paramiko.RSAKey),
    )
    loaded = _decrypt(config.private_key.encode(), config.key_passphrase.encode() or None, label)
    for kind, wrapper in kinds:
        if isinstance(loaded, kind):
            text = loaded.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ).decode()
            return wrapper.from_private_key(io.StringIO(text))
    raise StorageLoginFailed(storage=label, detail="the private key is neither RSA, ECDSA nor Ed25519")


def _decrypt(pem: bytes, passphrase: bytes | None, label: str) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    load = serialization.load_ssh_private_key if b"OPENSSH" in pem[:64] else serialization.load_pem_private_key
    try:
        return load(pem.strip() + b"\n", passphrase)
    except TypeError:
        if passphrase is None:
            detail = "the private key is encrypted, and no passphrase was given"
        else:
            return _decrypt(pem, None, label)  # a passphrase was given for a key that needs none
    except (ValueError, UnsupportedAlgorithm):
        detail = "the private key cannot be read, or its passphrase is wrong"
    raise StorageLoginFailed(storage=label, detail=detail)


def normal_host_key(text: str) -> str:
    """Return a pinned host key as `type base64`, a comment dropped; "" stays "". Raises InvalidSpec."""
    if not text.strip():
        return ""
    kind, _, rest = text.strip().partition(" ")
    encoded = rest.strip().partition(" ")[0]
    try:
        inside = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        inside = b""
    if not inside[4:].startswith(kind.encode()):
        raise InvalidSpec(field="sftp.host_key", problem="must be a public key of the form: type base64")
    return f"{kind} {encoded}"


def host_key_fingerprint(host_key: str) -> str:
    """Return a host key as ssh-keygen shows it to people: its type and SHA256:…."""
    kind, _, encoded = host_key.partition(" ")
    digest = hashlib.sha256(base64.b64decode(encoded)).digest()
    return f"{kind} SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


# ---- small things -------------------------------------------------------------------------------------------------------


def shut(sock: socket.socket) -> None:
    """Shut a socket down: every thread blocked on it wakes at once, and its number is not reused under them."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reason_of(error: BaseException) -> str:
    """Return the first line of what a library says."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _quiet(transport: "Transport") -> None:
    """Keep paramiko's log to a logger that shows nothing unless someone adds a handler to it.

    It logs whole tracebacks as ERROR for what we raise as one sentence.
    """
    name = f"{__name__}.paramiko"
    logger = logging.getLogger(name)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    transport.set_log_channel(name)
