"""A file system of a chosen size, for what happens when a disk is full or read-only. Needs root."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty file system of `size_bytes` in memory at `folder`, and take it away again at the block's end."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "backup-manager-test", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        # Lazy: a server's session that is just ending must not keep the mount.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount_read_only(folder: Path) -> None:
    """Make a mounted file system read-only; nothing may be open for writing on it."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
