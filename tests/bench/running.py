"""A full of a running domain, from the start of the program to its end, beside virtnbdbackup (Debian's package).

Both speak to the same libvirtd, begin and end a pull-mode job of their own, take a copy (no checkpoint), and write to the same
file system. Ours compresses with zstd and encrypts, unwrapping the key with a passphrase first; virtnbdbackup writes the data
as it is, or compressed with lz4, and does not encrypt. Each run has a new folder. What bounds ours is measured in the same
rounds (see limits.py).
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from engine.spec import Settings
from tests.bench.bench import Bench
from tests.bench.figures import absent, figure, note
from tests.bench.host import Host
from tests.bench.limits import Floor, floor
from tests.bench.process import Run, run, stored_bytes
from tests.bench.rounds import alternate
from tests.servers.sshd import Sshd

PROGRAM = "virtnbdbackup"
AIMS = {"raw": ">= 1.7", "lz4": ">= 2.0"}
SETTINGS = ("--workers", "2", "--compression-threads", "2")


def measure(bench: Bench) -> bool:
    with Host(bench.scratch("host"), bench.disk, running=True) as host:
        _notes(bench, host)
        return _against_virtnbdbackup(bench, host)


def _against_virtnbdbackup(bench: Bench, host: Host) -> bool:
    missing = [absent(_title(kind), aim, PROGRAM) for kind, aim in AIMS.items()]
    if any(missing):
        return False
    payload_bytes = bench.disk.payload.stat().st_size
    packed_bytes = payload_bytes // 5
    floors: list[Floor] = []

    def limit(to: Path) -> float:
        floors.append(floor(host, bench.disk.payload, to))
        return floors[-1].seconds

    results = alternate(
        "full of a running domain",
        bench.rounds,
        lambda: _in_new_folder(bench, packed_bytes, lambda to: _ours(host, to, *SETTINGS).seconds),
        lambda: _in_new_folder(bench, packed_bytes, lambda to: _ours(host, to).seconds),
        lambda: _in_new_folder(bench, payload_bytes, lambda to: _theirs(host, to).seconds),
        lambda: _in_new_folder(bench, packed_bytes, lambda to: _theirs(host, to, "-z").seconds),
        lambda: _in_new_folder(bench, packed_bytes, limit),
    )
    note("full of a running domain, 2 workers, 2 compression threads, whole process", [one[0] for one in results], "s")
    usual = Settings()
    name = f"full of a running domain, {usual.workers} workers, {usual.compression_threads} compression thread (the default)"
    met = True
    for kind, position in (("raw", 2), ("lz4", 3)):
        note(f"{name}: times as fast as virtnbdbackup {kind}", [one[position] / one[1] for one in results], "")
        met &= figure(_title(kind), [one[position] / one[0] for one in results], AIMS[kind])
        note(
            f"the limit, zstd -3 and reading a running domain on all cores: times as fast as virtnbdbackup {kind}",
            [one[position] / one[4] for one in results], "",
        )  # fmt: skip
    note(
        "full of a running domain, whole process: its time against that limit's",
        [one[0] / one[4] for one in results],
        "",
    )
    note(
        "a running domain's disk read to nowhere, its job begun and ended",
        [one.pulled_seconds for one in floors[1:]],
        "s",
    )
    note("CPU time of that, QEMU's among it", [one.pulled_cpu_seconds for one in floors[1:]], "s")
    return met


def _title(kind: str) -> str:
    return (
        "full of a running domain, 2 workers, 2 compression threads, encrypted, whole process: "
        f"times as fast as virtnbdbackup {kind}"
    )


def _in_new_folder(bench: Bench, bytes_min: int, copy: Callable[[Path], float]) -> float:
    """Make one copy in a new folder and return its seconds. Raises RuntimeError if it is not as large as the data demands."""
    to = bench.scratch("copy")
    try:
        seconds, size = copy(to), stored_bytes(to)
    finally:
        shutil.rmtree(to)
    if size < bytes_min:
        raise RuntimeError(f"only {size} bytes were stored")
    return seconds


def _ours(host: Host, to: Path, *settings: str) -> Run:
    storage = host.local(to)
    return host.engine("backup", storage, "--type", "copy", *settings, host.domain.name)


def _theirs(host: Host, to: Path, *options: str) -> Run:
    # To it a URI such as qemu+unix:… is another machine, which it would only talk to with a password.
    command = [PROGRAM, "-U", "qemu:///system", "-d", host.domain.name, "-l", "copy", "-n", "-o", str(to / "copy")]
    return run(host.as_local([*command, "-S", str(to), "-f", str(to / "socket"), *options]))


def _notes(bench: Bench, host: Host) -> None:
    """Peak memory of the whole engine at the default settings, and how long it takes until the disk is read."""
    folder = bench.scratch("observed")
    with Sshd(folder) as server:
        key = folder / "key"
        key.write_text(server.private_key)
        sftp = {
            "type": "sftp", "host": "127.0.0.1", "port": server.port, "username": server.username,
            "path": str(folder / "remote"), "private_key_file": str(key), "host_key": server.host_key,
        }  # fmt: skip
        storages = {"local": host.local(folder), "SFTP": host.storage(folder / "sftp.json", sftp)}
        for kind, storage in storages.items():
            seen = [host.observed("backup", storage, "--type", "copy", host.domain.name) for _ in range(bench.rounds)]
            note(
                f"peak memory of bm-engine backup to a {kind} storage, default settings, encrypted",
                [one["peak_mib"] for one in seen],
                "MiB",
            )
            if kind == "local":
                note(
                    "bm-engine backup of a running domain: from its start to the first read",
                    [one["first_read_seconds"] for one in seen],
                    "s",
                )
        shutil.rmtree(folder)
