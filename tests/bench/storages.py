"""Uploads and ranged downloads of each storage beside the best tool for it, on the same server in the same round.

    ours    one object in pieces of 4 MiB ─► open storage ─► durable under its name        the tool    one file, its fastest way
            the object in ranges of 4 MiB, 4 threads ─► file                                           the object ─► file

Real servers on loopback, which share the machine with both; then, with fewer bytes, the same 50 ms away. Both sides send the
same random bytes from a file, wait for the disk where both can, and what arrived is compared after the clock has stopped. A
tool's time is its whole process; ours has the connections, the look for the folder and the rename in it.
"""

import filecmp
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.spec import LocalConfig, StorageSpec
from engine.units import MIB
from tests.bench.bench import Bench
from tests.bench.delay import delayed
from tests.bench.figures import absent, failed, figure, note
from tests.bench.process import run
from tests.bench.rounds import alternate, progress
from tests.bench.transfer import transfer
from tests.servers.rclone import RcloneRemotes, sftp_remote
from tests.servers.sshd import Sshd, free_port
from tests.servers.vsftpd import PASSWORD, USERNAME, Vsftpd
from tests.servers.weed import Weed

BYTES = 128 * MIB
FAR_BYTES = 32 * MIB
ROUND_TRIP_SECONDS = 0.05
_FAR_AIM = ">= 0.7"
_FTP_DATA_PORTS = 24


@dataclass(frozen=True, slots=True)
class _Command:
    """A tool's command line; `source` is on its stdin, `sink` takes its stdout."""

    words: Sequence[str | Path]
    source: Path = Path(os.devnull)
    sink: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Way:
    """A storage and a tool on one server. `put(name, file)` and `get(name, file)` are the tool's; `stored(name)` is where
    an object lies on this machine, None where it is no file: then it is fetched by the tool to be looked at.
    """

    kind: str
    tool: str
    aims: tuple[str, str]
    spec: StorageSpec
    put: Callable[[str, Path], _Command]
    get: Callable[[str, Path], _Command]
    stored: Callable[[str], Path | None]


def measure(bench: Bench) -> bool:
    near, far = _payload(bench, BYTES), _payload(bench, FAR_BYTES)
    met = True
    with ExitStack() as stack:
        servers = _Servers(bench, stack)
        for way in servers.ways("127.0.0.1"):
            met &= _compare(bench, way, near, way.aims, "")
        with delayed(ROUND_TRIP_SECONDS, servers.ports) as address:
            for way in servers.ways(address):
                if way.spec.local is None:
                    met &= _compare(bench, way, far, (_FAR_AIM, _FAR_AIM), ", 50 ms away")
    return met


# ---- one storage --------------------------------------------------------------------------------------------------------


def _compare(bench: Bench, way: _Way, payload: Path, aims: tuple[str, str], where: str) -> bool:
    """Upload and download by both in turn; print the figures and tell whether the aims are met."""
    titles = [f"{way.kind}: {what}{where}, times as fast as {way.tool}" for what in ("upload", "ranged download")]
    program = way.tool.split()[0]
    if any(absent(title, aim, program) for title, aim in zip(titles, aims, strict=True)):
        return False
    out = bench.scratch("out")
    runs = (
        lambda: _uploaded(way, payload, out, lambda name: transfer("up", way.spec, name, payload)),
        lambda: _uploaded(way, payload, out, lambda name: _time(way.put(name, payload))),
        lambda: _downloaded(payload, out, lambda file: transfer("down", way.spec, "kept", file)),
        lambda: _downloaded(payload, out, lambda file: _time(way.get("kept", file))),
    )
    try:
        _time(way.put("kept", payload))
        results = alternate(f"{way.kind}{where}", bench.rounds, *runs)
    except (
        RuntimeError
    ) as error:  # of us or the tool: its words are in it; the other storages are measured all the same
        for title, aim in zip(titles, aims, strict=True):
            failed(title, aim, str(error))
        return False
    met = True
    for title, aim, ours, theirs in zip(titles, aims, (0, 2), (1, 3), strict=True):
        rates = [payload.stat().st_size / one[ours] / 1e6 for one in results]
        note(title.partition(",")[0] + where, rates, "MB/s")
        met &= figure(title, [one[theirs] / one[ours] for one in results], aim)
    return met


_names = iter(range(10**9))


def _uploaded(way: _Way, payload: Path, out: Path, put: Callable[[str], float]) -> float:
    """Return the seconds of an upload under a new name, after what arrived was compared."""
    name = f"object-{next(_names)}"
    seconds = put(name)
    file = way.stored(name)
    if file is None:
        file = out / name
        _time(way.get(name, file))
    _check(file, payload)
    file.unlink()
    return seconds


def _downloaded(payload: Path, out: Path, get: Callable[[Path], float]) -> float:
    file = out / "downloaded"
    seconds = get(file)
    _check(file, payload)
    file.unlink()
    return seconds


def _check(file: Path, payload: Path) -> None:
    if not filecmp.cmp(file, payload, shallow=False):
        raise RuntimeError(f"{file} is not what was sent")


def _time(command: _Command) -> float:
    return run(command.words, source=command.source, sink=command.sink, environment=command.environment).seconds


def _payload(bench: Bench, size: int) -> Path:
    path = bench.scratch("payload") / "payload"
    with path.open("wb") as file:
        for _ in range(max(1, size // bench.part // MIB)):
            file.write(os.urandom(MIB))
    return path


# ---- the servers --------------------------------------------------------------------------------------------------------


class _Servers:
    """One server for each storage, all on loopback, until `stack` ends them."""

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        progress("starting the servers")
        self._folder = bench.scratch("servers")
        self._sshd = stack.enter_context(Sshd(bench.scratch("sshd")))
        self._data_ports = [free_port() for _ in range(_FTP_DATA_PORTS)]
        first = min(self._data_ports)
        self._data_ports = list(range(first, first + _FTP_DATA_PORTS))
        lines = [f"pasv_min_port={first}", f"pasv_max_port={first + _FTP_DATA_PORTS - 1}"]
        self._vsftpd = stack.enter_context(Vsftpd(bench.scratch("vsftpd"), options=lines))
        self._weed = stack.enter_context(Weed(bench.scratch("weed")))
        self._bucket = self._weed.bucket()
        self._key = self._folder / "key"
        self._key.touch(mode=0o600)
        self._key.write_text(self._sshd.private_key)

    @property
    def ports(self) -> list[int]:
        """All ports that a client connects to."""
        return [self._sshd.port, self._vsftpd.port, *self._data_ports, self._weed.port]

    def ways(self, address: str) -> list[_Way]:
        return [self._local(), self._sftp(address), self._s3(address), self._ftp(address), self._rclone(address)]

    def _local(self) -> _Way:
        folder = self._made("local")
        return _Way(
            "local", "dd with fsync", (">= 0.95", ">= 0.95"), _spec(local=LocalConfig(str(folder))),
            lambda name, file: _dd(file, folder / name, "conv=fsync"),
            lambda name, file: _dd(folder / name, file),
            lambda name: folder / name,
        )  # fmt: skip

    def _sftp(self, address: str) -> _Way:
        folder = self._made("sftp")
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        ssh = ["ssh", "-F", "none", "-c", "aes128-gcm@openssh.com", "-i", str(self._key), "-p", str(self._sshd.port)]
        ssh += [word for option in options for word in ("-o", option)] + [f"{self._sshd.username}@{address}"]
        return _Way(
            "sftp", "ssh cat (aes128-gcm)", (">= 0.85", ">= 0.7"), _spec(sftp=self._sshd.config(folder, host=address)),
            lambda name, file: _Command([*ssh, f"cat > {folder / name} && sync {folder / name}"], source=file),
            lambda name, file: _Command([*ssh, f"cat {folder / name}"], sink=file),
            lambda name: folder / name,
        )  # fmt: skip

    def _s3(self, address: str) -> _Way:
        endpoint = f"http://{address}:{self._weed.port}"
        curl = ["curl", "--silent", "--show-error", "--fail"]
        config = self._weed.config(self._bucket, endpoint=endpoint, prefix="")

        def url(name: str, method: str) -> str:
            return self._presigned(endpoint, name, method)

        return _Way(
            "s3", "curl (one PUT or GET, presigned)", (">= 0.9", ">= 0.9"), _spec(s3=config),
            lambda name, file: _Command([*curl, "--upload-file", str(file), url(name, "put_object")]),
            lambda name, file: _Command([*curl, "--output", str(file), url(name, "get_object")]),
            lambda _: None,
        )  # fmt: skip

    def _presigned(self, endpoint: str, name: str, method: str) -> str:
        import boto3
        from botocore.config import Config

        client = boto3.session.Session().client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=self._weed.access_key,
            aws_secret_access_key=self._weed.secret_key,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )  # fmt: skip
        return str(client.generate_presigned_url(method, Params={"Bucket": self._bucket, "Key": name}))

    def _ftp(self, address: str) -> _Way:
        folder = self._made("ftp")
        config = self._vsftpd.config(folder, host=address, skip_tls_verify=True)
        curl = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--insecure",
            "--ssl-reqd",
            "--user",
            f"{USERNAME}:{PASSWORD}",
        ]

        def url(name: str) -> str:
            return f"ftp://{address}:{self._vsftpd.port}/{folder / name}"

        return _Way(
            "ftp (TLS)", "curl", (">= 0.9", ">= 0.9"), _spec(ftp=config),
            lambda name, file: _Command([*curl, "--upload-file", str(file), url(name)]),
            lambda name, file: _Command([*curl, "--output", str(file), url(name)]),
            lambda name: folder / name,
        )  # fmt: skip

    def _rclone(self, address: str) -> _Way:
        folder = self._made("rclone")
        remote = sftp_remote(self._sshd, self._folder)
        remote |= {"host": address, "shell_type": "none"}  # no hashes: rclone would have the server read all again
        del remote["known_hosts_file"]
        remotes = RcloneRemotes(self._folder / f"rclone-{address}.conf", nas=remote)
        command = ["env", "-u", "AWS_CA_BUNDLE", "rclone", "--config", str(remotes.path), "copyto", "--ignore-checksum"]
        return _Way(
            "rclone (sftp)", "rclone copyto", (">= 0.9", ">= 0.9"), _spec(rclone=remotes.config("nas", folder)),
            lambda name, file: _Command([*command, str(file), f"nas:{folder / name}"]),
            lambda name, file: _Command([*command, f"nas:{folder / name}", str(file)]),
            lambda name: folder / name,
        )  # fmt: skip

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(mode=0o777, exist_ok=True)
        return folder


def _dd(source: Path, sink: Path, *more: str) -> _Command:
    return _Command(["dd", f"if={source}", f"of={sink}", "bs=4M", "status=none", *more])


def _spec(**config: object) -> StorageSpec:
    return replace(StorageSpec("r", "i"), **config)  # type: ignore[arg-type]  # one of its five backends
