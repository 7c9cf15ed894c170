"""Peak memory of whole engine processes, as an agent starts them: libvirt, a storage and its keys included.

    servers      1, 2 and 4 at once in one process, plain and encrypted, at the default settings; on a local storage
    storages     the same, one server, encrypted, to an sshd and to a bucket on loopback
    disk         one of 4 TiB that is nearly empty, encrypted
    index        a million frames: written, verified, restored (see many_frames.py)

In RAM counts what every process on the host shares one copy of, too: the pages of libvirt, Python and cryptography in use. The domains are stopped and share one image, which is exported read-only to each.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.ids import new_id
from engine.spec import Job, Settings
from engine.storage.s3_parts import FLIGHT_BYTES
from engine.units import MIB
from tests.bench import many_frames
from tests.bench.bench import Bench
from tests.bench.figures import figure, note
from tests.bench.process import peak_mib
from tests.bench.rounds import progress
from tests.engine.engine_process import EngineProcess
from tests.engine.rig import Rig
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.servers.sshd import Sshd
from tests.servers.weed import Weed

TIB = 1 << 40
DATA_BYTES = 256 * MIB
ROUNDS_MIN = 10
SERVERS = (1, 2, 4)


def measure(bench: Bench) -> bool:
    rounds = max(ROUNDS_MIN, bench.rounds) if bench.part == 1 else bench.rounds
    with Libvirtd(bench.scratch("libvirtd")) as libvirtd:
        image = _image(bench, DATA_BYTES // bench.part)
        met = [_servers(bench, libvirtd.uri, image, rounds, encrypted=encrypted) for encrypted in (False, True)]
        met.append(_storages(bench, libvirtd.uri, image, rounds))
        with image.open("r+b") as file:
            file.truncate(4 * TIB)
        large = [peak_of(bench.scratch("large"), libvirtd.uri, image, 1, encrypted=True) for _ in range(bench.rounds)]
        met.append(figure("peak memory of an engine process, encrypted, a disk of 4 TiB, MiB", large, "<= 60"))
    return all([*met, many_frames.measure(bench)])


def _image(bench: Bench, data_bytes: int) -> Path:
    """Return a raw image with the first bytes of the disk's data, which compress as they do."""
    image = bench.scratch("image") / "disk.raw"
    with bench.disk.payload.open("rb") as payload, image.open("wb") as file:
        left = data_bytes
        while left > 0 and (piece := payload.read(min(MIB, left))):
            file.write(piece)
            left -= len(piece)
    return image


def _servers(bench: Bench, uri: str, image: Path, rounds: int, *, encrypted: bool) -> bool:
    kind, aim = ("encrypted", "<= 60") if encrypted else ("plain", "<= 50")
    peaks = {}
    for count in SERVERS:
        progress(f"memory, {kind}, {count} servers")
        peaks[count] = [
            peak_of(bench.scratch("servers"), uri, image, count, encrypted=encrypted) for _ in range(rounds)
        ]
    further = [(most - one) / (SERVERS[-1] - 1) for one, most in zip(peaks[1], peaks[SERVERS[-1]], strict=True)]
    note(f"peak memory of an engine process, {kind}, two servers at once", peaks[2], "MiB")
    return all([
        figure(f"peak memory of an engine process, {kind}, one server, MiB", peaks[1], aim),
        figure(f"peak memory of an engine process, {kind}, for each further server, MiB", further, "<= 50"),
    ])  # fmt: skip


def _storages(bench: Bench, uri: str, image: Path, rounds: int) -> bool:
    progress("memory, storages")
    folder = bench.scratch("storages")
    with Sshd(folder) as server:
        peaks = [_peak_to(bench, uri, image, sftp=server.config(bench.scratch("vault"))) for _ in range(rounds)]
        met = figure("peak memory of an engine process, encrypted, one server, over SFTP, MiB", peaks, "<= 60")
    with Weed(folder) as gateway:
        peaks = [_peak_to(bench, uri, image, s3=gateway.config(gateway.bucket())) for _ in range(rounds)]
        aim = f"<= {60 + FLIGHT_BYTES // MIB}"  # with the parts in flight (S6)
        return met & figure("peak memory of an engine process, encrypted, one server, to a bucket, MiB", peaks, aim)


def _peak_to(bench: Bench, uri: str, image: Path, **backend: Any) -> float:
    return peak_of(bench.scratch("storage"), uri, image, 1, encrypted=True, backend=backend)


def peak_of(
    folder: Path,
    uri: str,
    image: Path,
    count: int,
    *,
    encrypted: bool,
    settings: Settings | None = None,
    backend: Mapping[str, Any] | None = None,
) -> float:
    """Return the most memory that one engine process had in RAM while it copied `count` servers side by side, in MiB.

    `backend` is the field of a StorageSpec with a storage that is not a local folder.
    """
    folder.mkdir(exist_ok=True)
    rig = Rig.make(folder, uri, encrypted=encrypted)
    if backend:
        rig.target = replace(rig.target, local=None, **backend)
    with contextlib.ExitStack() as stack:
        disks = [DiskFile("vda", image, "raw")]
        domains = [stack.enter_context(BlankDomain(uri, disks, running=False)) for _ in range(count)]
        jobs = [Job(new_id(datetime.now(UTC)), backup=rig.backup_job(one.uuid, type="copy")) for one in domains]
        operation = replace(rig.operation(jobs[0]), concurrency=count, settings=settings or Settings())
        engine = stack.enter_context(EngineProcess(folder / "process", operation, jobs))
        peak = 0.0
        while engine.running:
            time.sleep(0.005)
            with contextlib.suppress(OSError, IndexError, ValueError):  # it is just ending
                peak = max(peak, peak_mib(str(engine.pid)))
        states = {one["state"] for one in engine.wait()}
    shutil.rmtree(folder)
    if states != {"completed"}:
        raise RuntimeError(f"the backups ended as {states}")
    return peak
