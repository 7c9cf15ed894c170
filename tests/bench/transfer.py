"""One object to or from a storage, measured from before the connection to after its end. A program of its own: see storages.py.

    {"spec": …, "name": …, "file": …}  on stdin  ──►  seconds on stdout

Upload: the file in pieces of a frame's size. Download: ranges of that size by as many threads as a restore has workers, written
to the file where they belong. Loading the backend, as starting the interpreter, is not part of it.
"""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from mmap import mmap
from pathlib import Path
from typing import Any

from engine import spec
from engine.memory import keep_one_pool, keep_read_blocks
from engine.spec import Settings, StorageSpec
from engine.storage.open import open_storage
from engine.units import MIB
from tests.bench.process import run_with

FRAME_BYTES = 4 * MIB


def transfer(direction: str, target: StorageSpec, name: str, file: Path) -> float:
    """Run the program below and return its seconds."""
    words = json.dumps({"spec": spec.dump(target), "name": name, "file": str(file)})
    command = [sys.executable, "-m", "tests.bench.transfer", direction]
    return float(run_with(command, words.encode()).output)


def main() -> None:
    keep_one_pool()
    words: dict[str, Any] = json.load(sys.stdin)
    target = spec.load(StorageSpec, words["spec"])
    for kind in ("local", "sftp", "s3", "ftp", "rclone"):
        if getattr(target, kind) is not None:
            import_module(f"engine.storage.{kind}")
    if target.sftp is not None:
        import_module("paramiko")
    work = {"up": _up, "down": _down}[sys.argv[1]]
    begun = time.perf_counter()
    work(target, words["name"], Path(words["file"]))
    print(time.perf_counter() - begun)


def _up(target: StorageSpec, name: str, file: Path) -> None:
    buffer = bytearray(FRAME_BYTES)
    with (
        open_storage(target) as storage,
        file.open("rb", buffering=0) as source,
        storage.create(name, file.stat().st_size) as sink,
    ):
        while count := source.readinto(buffer):
            sink.write(memoryview(buffer)[:count])


def _down(target: StorageSpec, name: str, file: Path) -> None:
    keep_read_blocks()
    with open_storage(target) as storage, file.open("wb", buffering=0) as sink:
        reader = storage.open(name)
        mine = threading.local()  # memory of each thread, as a worker of a restore has it
        try:

            def fetch(offset: int) -> None:
                if not hasattr(mine, "room"):
                    mine.room = memoryview(mmap(-1, FRAME_BYTES))
                target = mine.room[: min(FRAME_BYTES, reader.size_bytes - offset)]
                reader.read_into(offset, target)
                os.pwrite(sink.fileno(), target, offset)

            with ThreadPoolExecutor(Settings().workers) as pool:
                for _ in pool.map(fetch, range(0, reader.size_bytes, FRAME_BYTES)):
                    pass
        finally:
            reader.close()


if __name__ == "__main__":
    main()
