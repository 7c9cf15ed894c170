"""One measured run of the pipeline in a process of its own: `python -m tests.bench.store SOCKET EXPORT [options]`.

Without --to nothing is kept; with it the segments lie in that folder, as in a repository. Prints JSON: seconds and CPU
seconds from the first connection to the last byte written, bytes, and the process's peak memory.
"""

import argparse
import json
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from engine.extents import plan_full, plan_packed
from engine.format.crypto import Aead, StorageKey
from engine.memory import keep_one_pool
from engine.pipeline import DiskIdentity, store
from engine.source.nbd_disk import NbdDisk
from engine.spec import LocalConfig, Settings, StorageSpec
from engine.storage.base import Abilities, Buffer, Entry, ObjectReader, Sink, Storage, Usage
from engine.storage.open import open_storage
from engine.work import Work
from tests.bench.process import Run, peak_mib, run


class _NullSink:
    def write(self, data: Buffer) -> None:
        pass


class NullStorage(Storage):
    """Takes everything and keeps nothing."""

    abilities = Abilities(atomic_rename=True, exclusive_create=True, resume=False, usage=False, bind_address=False)
    label = "null"

    def create(self, name: str, size_hint: int = 0) -> AbstractContextManager[Sink]:
        @contextmanager
        def sink() -> Iterator[Sink]:
            yield _NullSink()

        return sink()

    def open(self, name: str) -> ObjectReader:
        raise AssertionError(name)

    def size(self, name: str) -> int:
        raise AssertionError(name)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(())

    def folders(self, prefix: str = "") -> Iterator[str]:
        return iter(())

    def delete(self, name: str) -> None:
        pass

    def usage(self) -> Usage | None:
        return None

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def sweep(self, prefix: str, keep: Collection[str] = ()) -> None:
        pass


class _Silent:
    def stage(self, stage: str, bytes_total: int = 0) -> None: ...
    def expect(self, bytes_total: int) -> None: ...
    def advance(self, bytes_done: int, bytes_stored: int = 0) -> None: ...
    def info(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...
    def record(self, record: dict[str, object]) -> None: ...
    def may_commit(self) -> bool:
        return True


def run_store(
    socket: str,
    export: str,
    *,
    bitmap: str = "",
    plain: bool = False,
    workers: int = 2,
    threads: int = 2,
    to: Path | None = None,
) -> tuple[dict[str, Any], Run]:
    """Run the program below and return what it tells, and what was measured from outside."""
    command = [sys.executable, "-m", "tests.bench.store", socket, export, "--workers", str(workers)]
    command += ["--threads", str(threads), "--bitmap", bitmap, *(["--plain"] if plain else [])]
    measured = run([*command, *(["--to", str(to)] if to else [])], keep_output=True)
    return json.loads(measured.output), measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("export")
    parser.add_argument("--bitmap", default="")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--workers", type=int, default=Settings().workers)
    parser.add_argument("--threads", type=int, default=Settings().compression_threads)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    keep_one_pool()
    server_id = str(uuid.UUID(int=1))
    key = None if options.plain else StorageKey(server_id, bytes(range(32))).server_key(server_id)
    settings = Settings(workers=options.workers, compression_threads=options.threads)
    storage = (
        open_storage(StorageSpec(server_id, server_id, local=LocalConfig(str(options.to))))
        if options.to
        else NullStorage()
    )
    if key is not None:
        Aead(bytes(32))  # loads the library, as starting the interpreter not part of the run
    begun, cpu = time.perf_counter(), time.process_time()
    disk = NbdDisk(options.socket, options.export, options.bitmap)
    plan = plan_packed(disk.extents()) if options.bitmap else plan_full(disk.extents())
    identity = DiskIdentity(server_id, server_id, "vda")
    work = Work(_Silent(), settings)
    segments = store(disk, plan, storage, identity, key, work, plain_bytes=disk.recorded_bytes())
    told = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "plain_bytes": sum(segment.plain_bytes for segment in segments),
        "stored_bytes": sum(segment.stored_bytes for segment in segments),
        "peak_mib": peak_mib(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
