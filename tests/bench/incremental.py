"""An incremental of 1 % of the data, in scattered 64 KiB blocks, beside a full of the same disk: both to null, encrypted."""

from engine.source.export import export_image
from tests.bench.bench import Bench
from tests.bench.disk import BITMAP, BenchDisk
from tests.bench.figures import figure, note
from tests.bench.process import run
from tests.bench.rounds import alternate
from tests.bench.store import run_store


def measure(bench: Bench) -> bool:
    return all([_measure(bench, bench.disk, ""), _measure(bench, bench.aged, "aged disk: ")])


def _measure(bench: Bench, disk: BenchDisk, prefix: str) -> bool:
    with export_image(str(disk.image), "qcow2", bitmaps=[BITMAP]) as export:

        def incremental() -> dict[str, float]:
            return run_store(export.socket, export.name, bitmap=BITMAP)[0]

        def full() -> dict[str, float]:
            return run_store(export.socket, export.name)[0]

        results = alternate(f"{prefix}incremental", bench.rounds, incremental, full)
    dirty_bytes = disk.dirty_payload.stat().st_size
    if any(mine["plain_bytes"] != dirty_bytes for mine, _ in results):
        raise RuntimeError("the incremental did not read just what is dirty")
    alone = len(run(["zstd", "-3", "-q", "-c", disk.dirty_payload], keep_output=True).output)
    note(
        f"{prefix}incremental of {dirty_bytes // 65536} scattered blocks", [mine["seconds"] for mine, _ in results], "s"
    )
    return all([
        figure(
            f"{prefix}incremental of 1 % of the data in scattered 64 KiB blocks: time against the full's",
            [mine["seconds"] / other["seconds"] for mine, other in results], "<= 0.02",
        ),
        figure(
            f"{prefix}incremental's stored bytes against zstd -3 of the dirty bytes",
            [mine["stored_bytes"] / alone for mine, _ in results], "<= 1.1",
        ),
    ])  # fmt: skip
