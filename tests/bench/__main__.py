"""`make bench`: measures on a quiet machine, prints JSON lines, exits 1 if an aim was missed."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.source.export import export_image
from tests.bench import disk
from tests.bench.figures import figure, note

ROUNDS = 7


def run_store(
    socket: str, export: str, *, bitmap: str = "-", keyed: str = "yes", workers: int = 2, threads: int = 2
) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.store", socket, export, bitmap, keyed, str(workers), str(threads)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def run_zstd(payload: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(["zstd", "-3", "-T2", "-q", "-c", payload], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def zstd_bytes(payload: Path) -> int:
    packed = subprocess.run(["zstd", "-3", "-T2", "-q", "-c", payload], check=True, capture_output=True).stdout
    return len(packed)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bm-bench-", dir=Path(__file__).parents[2] / "build") as folder:
        measured = disk.make(Path(folder))
        with (
            export_image(str(measured.image), "qcow2") as full,
            export_image(str(measured.image), "qcow2", bitmaps=["dirty"]) as changed,
        ):
            ok = measure(measured, (full.socket, full.name), (changed.socket, changed.name))
    sys.exit(0 if ok else 1)


def measure(measured: disk.BenchDisk, full: tuple[str, str], changed: tuple[str, str]) -> bool:
    run_store(*full)  # warms the page cache for everybody
    run_zstd(measured.payload)
    speed, share, memory, plain_memory, rates = [], [], [], [], []
    incremental: dict[str, Any] = {}
    for _ in range(ROUNDS):
        ours = run_store(*full)
        theirs = run_zstd(measured.payload)
        incremental = run_store(*changed, bitmap="dirty")
        plain = run_store(*full, keyed="no", workers=4, threads=1)
        four = run_store(*full, workers=4, threads=1)
        speed.append(theirs / ours["seconds"])
        share.append(incremental["seconds"] / ours["seconds"])
        rates.append(ours["plain_bytes"] / ours["seconds"] / 1e6)
        memory.append(four["peak_mib"])
        plain_memory.append(plain["peak_mib"])
    note("full, encrypted, 2 workers: MB/s of data", sorted(rates)[len(rates) // 2], "MB/s")
    stored = incremental["stored_bytes"] / zstd_bytes(measured.dirty_payload)
    met = [
        figure("full to null, 2 workers, encrypted, against zstd -3 -T2 of the same bytes", speed, ">= 0.85"),
        figure("peak memory of the engine, encrypted, default settings, MiB", memory, "<= 70"),
        figure("peak memory of the engine, plain, default settings, MiB", plain_memory, "<= 60"),
        figure("incremental of 1 % of the data in scattered 64 KiB blocks against the full, time", share, "<= 0.03"),
        figure("incremental's stored bytes against zstd -3 of the dirty bytes", [stored], "<= 1.1"),
    ]  # fmt: skip
    return all(met)


if __name__ == "__main__":
    main()
