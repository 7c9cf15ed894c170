"""A restore, every frame verified, from the start of bm-engine to its end, beside qemu-img convert of a compressed qcow2.

    raw      restore --to FOLDER --format raw      qemu-img convert -O raw
    qcow2    restore --to FOLDER --format qcow2    qemu-img convert -O qcow2

Ours checks SHA-256 and authenticity of every frame and returns when the image is on the disk; qemu-img checks nothing, and by
default leaves the image in the page cache: the notes compare with one that waits for the disk too (-t writeback).
"""

import shutil
import subprocess
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.figures import figure, note
from tests.bench.host import Host
from tests.bench.process import run
from tests.bench.rounds import alternate

AIMS = {"raw": ">= 1.3", "qcow2": ">= 1.1"}


def measure(bench: Bench) -> bool:
    with Host(bench.scratch("host"), bench.disk, running=False) as host:
        storage = host.local(bench.scratch("storage"))
        host.engine("backup", storage, host.domain.name)
        packed = bench.scratch("packed") / "disk.qcow2"
        options = ["-c", "-O", "qcow2", "-o", "compression_type=zstd", "-m", "2", "-W"]
        run(["qemu-img", "convert", "-f", "qcow2", *options, bench.disk.image, packed])
        met = [_compare(bench, host, storage, packed, kind) for kind in AIMS]
        return all(met)


def _compare(bench: Bench, host: Host, storage: Path, packed: Path, kind: str) -> bool:
    results = alternate(
        f"restore to {kind}",
        bench.rounds,
        lambda: _ours(bench, host, storage, kind),
        lambda: _qemu_img(bench, packed, kind),
        lambda: _qemu_img(bench, packed, kind, "-t", "writeback"),
    )
    name = f"restore to {kind}, verified, on the disk, whole process"
    note(name, [mine for mine, _, _ in results], "s")
    note(
        f"{name}: times as fast as qemu-img convert -t writeback of a compressed qcow2",
        [waiting / mine for mine, _, waiting in results], "",
    )  # fmt: skip
    return figure(
        f"{name}: times as fast as qemu-img convert of a compressed qcow2",
        [other / mine for mine, other, _ in results],
        AIMS[kind],
    )


def _ours(bench: Bench, host: Host, storage: Path, kind: str) -> float:
    to = bench.scratch("restored")
    seconds = host.engine("restore", storage, "--to", str(to), "--format", kind, host.domain.name).seconds
    _check(bench, to / f"vda.{kind}", kind)
    shutil.rmtree(to)
    return seconds


def _qemu_img(bench: Bench, packed: Path, kind: str, *options: str) -> float:
    to = bench.scratch("converted")
    seconds = run(["qemu-img", "convert", "-f", "qcow2", "-O", kind, *options, packed, to / "disk"]).seconds
    _check(bench, to / "disk", kind)
    shutil.rmtree(to)
    return seconds


def _check(bench: Bench, image: Path, kind: str) -> None:
    """Raise CalledProcessError unless the image has the disk's bytes."""
    command = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", kind, str(bench.disk.image), str(image)]
    subprocess.run(command, check=True)
