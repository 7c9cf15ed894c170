"""One measured run of the pipeline in a process of its own: `python -m tests.bench.store SOCKET EXPORT BITMAP KEYED WORKERS THREADS`.

Prints JSON: seconds and CPU seconds of the run itself, bytes, and the process's peak memory.
"""

import json
import resource
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from engine.extents import plan_full, plan_packed
from engine.format.crypto import StorageKey
from engine.memory import keep_one_pool
from engine.pipeline import DiskIdentity, store
from engine.source.nbd_disk import NbdDisk
from engine.spec import Settings
from engine.storage.base import Abilities, Buffer, Entry, ObjectReader, Sink, Storage, Usage
from engine.work import Work


class _NullSink:
    def write(self, data: Buffer) -> None:
        pass


class NullStorage(Storage):
    """Takes everything and keeps nothing."""

    abilities = Abilities(atomic_rename=True, exclusive_create=True, resume=False, usage=False, bind_address=False)
    label = "null"

    def create(self, name: str) -> AbstractContextManager[Sink]:
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


def main() -> None:
    keep_one_pool()
    socket, export, bitmap, keyed, workers, threads = sys.argv[1:]
    server_id = str(uuid.UUID(int=1))
    key = StorageKey(server_id, bytes(range(32))).server_key(server_id) if keyed == "yes" else None
    settings = Settings(workers=int(workers), compression_threads=int(threads))
    begun, cpu = time.perf_counter(), time.process_time()
    disk = NbdDisk(socket, export, "" if bitmap == "-" else bitmap)
    plan = plan_full(disk.extents()) if bitmap == "-" else plan_packed(disk.extents())
    segments = store(
        disk, plan, NullStorage(), DiskIdentity(server_id, server_id, "vda"), key, Work(_Silent(), settings)
    )
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - begun,
                "cpu_seconds": time.process_time() - cpu,
                "plain_bytes": sum(segment.plain_bytes for segment in segments),
                "stored_bytes": sum(segment.stored_bytes for segment in segments),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
