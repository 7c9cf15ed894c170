"""The pipeline alone: a whole disk read over NBD, compressed, sealed, and thrown away, beside zstd on the same bytes.

Ours reads a qcow2 image through qemu-nbd and makes frames with SHA-256 and ChaCha20-Poly1305; `zstd -3 -T2` reads a file with
the bytes of the disk's data extents. Both write to nowhere, both sources are in the page cache.
"""

from typing import Any

from engine.source.export import Export, export_image
from tests.bench.bench import Bench
from tests.bench.disk import BenchDisk
from tests.bench.figures import figure, note
from tests.bench.process import Run, cpu_seconds_of, run
from tests.bench.rounds import alternate
from tests.bench.store import run_store


def measure(bench: Bench) -> bool:
    met = [_against_zstd(bench, bench.disk, ""), _against_zstd(bench, bench.aged, "aged disk: ")]
    return all([*met, _scaling(bench), _memory(bench)])


def zstd(disk: BenchDisk) -> Run:
    """Compress the disk's data with the bare compressor."""
    return run(["zstd", "-3", "-T2", "-q", "-c", disk.payload])


def _against_zstd(bench: Bench, disk: BenchDisk, prefix: str) -> bool:
    with export_image(str(disk.image), "qcow2") as export:

        def ours() -> tuple[float, float, int]:
            server = cpu_seconds_of(export.pid)
            told = _full(export)
            return told["seconds"], told["cpu_seconds"] + cpu_seconds_of(export.pid) - server, told["plain_bytes"]

        def theirs() -> tuple[float, float, int]:
            done = zstd(disk)
            return done.seconds, done.cpu_seconds, disk.payload.stat().st_size

        results = alternate(f"{prefix}full to null", bench.rounds, ours, theirs)
    if any(mine[2] != other[2] for mine, other in results):
        raise RuntimeError("the two did not read the same bytes")
    note(
        f"{prefix}full to null, 2 workers, 2 compression threads",
        [mine[2] / mine[0] / 1e6 for mine, _ in results],
        "MB/s of data",
    )
    return all([
        figure(
            f"{prefix}full to null, 2 workers, 2 compression threads, encrypted: times as fast as zstd -3 -T2 of the same bytes",
            [other[0] / mine[0] for mine, other in results], ">= 1.0",
        ),
        figure(
            f"{prefix}full to null, CPU time of client and NBD server against that of zstd -3 -T2",
            [mine[1] / other[1] for mine, other in results], "<= 1.15",
        ),
    ])  # fmt: skip


def _scaling(bench: Bench) -> bool:
    with export_image(str(bench.disk.image), "qcow2") as export:

        def two() -> float:
            return float(_full(export)["seconds"])

        def one() -> float:
            return float(_full(export, workers=1, threads=1)["seconds"])

        results = alternate("2 workers against 1", bench.rounds, two, one)
    return figure(
        "full to null: 2 workers with 2 compression threads, times as fast as 1 worker with 1",
        [other / mine for mine, other in results],
        ">= 1.8",
    )


def _memory(bench: Bench) -> bool:
    with export_image(str(bench.disk.image), "qcow2") as export:

        def plain() -> float:
            return float(_full(export, plain=True, workers=4, threads=1)["peak_mib"])

        def sealed() -> float:
            return float(_full(export, workers=4, threads=1)["peak_mib"])

        results = alternate("memory", bench.rounds, plain, sealed)
    return all([
        figure("peak memory of the pipeline's process, plain, default settings, MiB", [one for one, _ in results], "<= 50"),
        figure("peak memory of the pipeline's process, encrypted, default settings, MiB", [one for _, one in results], "<= 60"),
    ])  # fmt: skip


def _full(export: Export, **options: Any) -> dict[str, Any]:
    told, _ = run_store(export.socket, export.name, **options)
    return told
