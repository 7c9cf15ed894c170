"""A block device of a chosen size: a loop device over a sparse file, as stand-in for a volume. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loop_device(file: Path, size_bytes: int) -> Iterator[Path]:
    """Make `file` and a block device over it, for the block.

    It is detached at once, which the kernel does when nobody has it open any more: so it goes whichever way we end.
    """
    with file.open("xb") as made:
        made.truncate(size_bytes)
    command = ["losetup", "--find", "--show", str(file)]
    device = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    held = os.open(device, os.O_RDONLY)
    try:
        subprocess.run(["losetup", "--detach", str(device)], check=True)
        yield device
    finally:
        os.close(held)
