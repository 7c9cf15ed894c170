"""A full of the same bytes into a new local repository, beside qemu-img, restic and borg as whole processes.

    bm        qcow2 over NBD ─► 2 workers, 2 compression threads, zstd 3, SHA-256, ChaCha20-Poly1305 ─► segments, fsynced
    qemu-img  the same NBD export ─► zstd, 2 coroutines, writes out of order ─► qcow2; no encryption, nothing fsynced
    restic    a raw file with the data's bytes ─► its own chunks, zstd, AES-256-CTR + Poly1305
    borg      the same file ─► its own chunks, zstd 3, AES-256-CTR + HMAC-SHA256

All write to the same file system. Two more stand beside them: `zstd -3 -T2` of that file to another one,
fsynced, and our pipeline to nowhere, without the program's start. An aim that they miss too is out of reach here. Repositories are
made before the clock starts, and anew for every round.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.source.export import Export, export_image
from tests.bench.bench import Bench
from tests.bench.figures import absent, figure, note
from tests.bench.limits import packed
from tests.bench.process import run, stored_bytes
from tests.bench.rounds import alternate
from tests.bench.store import run_store

_LIMITS = {"zstd -3 -T2 of the same bytes to a file with fsync": -2, "our pipeline to nowhere": -1}  # places in a round
_PASSPHRASE = "a passphrase of the benchmark"


@dataclass(frozen=True, slots=True)
class _Peer:
    """`copy` gets a new folder and returns the seconds that its whole process took."""

    program: str
    name: str
    aim: str
    copy: Callable[[Path], float]


def measure(bench: Bench) -> bool:
    payload = bench.disk.payload
    with export_image(str(bench.disk.image), "qcow2") as export:
        peers = [
            _Peer("qemu-img", "qemu-img convert -c (zstd, -m 2 -W) from the same NBD export", ">= 1.3", lambda to: _qemu_img(export, to)),
            _Peer("restic", "restic of the raw bytes", ">= 3", lambda to: _restic(payload, to)),
            _Peer("borg", "borg (zstd,3, repokey) of the raw bytes", ">= 2", lambda to: _borg(payload, to)),
        ]  # fmt: skip
        missing = [absent(_title(peer), peer.aim, peer.program) for peer in peers]
        peers = [peer for peer, gone in zip(peers, missing, strict=True) if not gone]
        copies = [lambda to: _ours(export, to), *(peer.copy for peer in peers), lambda to: packed(payload, to).seconds]
        runs = [*(_checked(bench, copy) for copy in copies), lambda: _to_nowhere(export)]
        results = alternate("peers", bench.rounds, *runs)
    met = not any(missing)
    note("full to a local folder, 2 workers, 2 compression threads, whole process", [one[0][0] for one in results], "s")
    for position, peer in enumerate(peers, 1):
        met &= figure(_title(peer), [one[position][0] / one[0][0] for one in results], peer.aim)
        note(f"bytes that {peer.program} stored against ours", [one[position][1] / one[0][1] for one in results], "")
        for limit, column in _LIMITS.items():
            ratios = [one[position][0] / one[column][0] for one in results]
            note(f"the limit, {limit}: times as fast as {peer.program}", ratios, "")
    for limit, column in _LIMITS.items():
        ratios = [one[0][0] / one[column][0] for one in results]
        note(f"full to a local folder, whole process: its time against the limit, {limit}", ratios, "")
    return met


def _title(peer: _Peer) -> str:
    return f"full to a local folder, 2 workers, 2 compression threads, encrypted: times as fast as {peer.name}"


def _checked(bench: Bench, copy: Callable[[Path], float]) -> Callable[[], tuple[float, int]]:
    """Return what makes one copy in a new folder and tells seconds and stored bytes; half of the data at most may be missing.

    The data is a third incompressible or nearly so: who stored less than a fifth has not stored it.
    """

    def one() -> tuple[float, int]:
        to = bench.scratch("copy")
        try:
            seconds, size = copy(to), stored_bytes(to)
        finally:
            shutil.rmtree(to)
        if size < bench.disk.payload.stat().st_size // 5:
            raise RuntimeError(f"only {size} bytes were stored")
        return seconds, size

    return one


def _to_nowhere(export: Export) -> tuple[float, int]:
    told, _ = run_store(export.socket, export.name)
    return float(told["seconds"]), 0


def _ours(export: Export, to: Path) -> float:
    _, measured = run_store(export.socket, export.name, to=to)
    return measured.seconds


def _qemu_img(export: Export, to: Path) -> float:
    source = f"nbd+unix:///{export.name}?socket={export.socket}"
    options = ["-c", "-O", "qcow2", "-o", "compression_type=zstd", "-m", "2", "-W"]
    return run(["qemu-img", "convert", "-f", "raw", *options, source, to / "disk.qcow2"]).seconds


def _restic(payload: Path, to: Path) -> float:
    environment = {"RESTIC_PASSWORD": _PASSPHRASE, "RESTIC_CACHE_DIR": str(to / "cache")}
    command = ["restic", "--quiet", "--repo", str(to / "repository")]
    run([*command, "init"], environment=environment)
    return run([*command, "backup", str(payload)], environment=environment).seconds


def _borg(payload: Path, to: Path) -> float:
    environment = {"BORG_PASSPHRASE": _PASSPHRASE, "BORG_BASE_DIR": str(to / "base")}
    repository = to / "repository"
    run(["borg", "init", "--encryption", "repokey", repository], environment=environment)
    return run(
        ["borg", "create", "--compression", "zstd,3", f"{repository}::disk", payload], environment=environment
    ).seconds
