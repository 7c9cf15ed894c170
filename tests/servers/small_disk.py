"""A file system of a chosen size, for what happens when a disk is full or read-only. Needs root."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.servers.libvirtd import Libvirtd


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


@contextmanager
def shared_disk(libvirtd: Libvirtd, folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small file system at `folder` that QEMU, who has other mounts than we, sees there too."""
    image = folder.with_suffix(".ext4")
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m0", "-O", "^has_journal", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(folder)], check=True, capture_output=True, text=True
        ).stdout.strip()
        subprocess.run([*libvirtd.enter(), "mount", device, str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*libvirtd.enter(), "umount", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Callable[[], None]:
    """Take all the room of a small file system at once; return what gives it back."""
    path = folder / "somebody-elses"
    with path.open("wb") as file:
        for chunk in (1 << 20, 4 << 10):
            with suppress(OSError):  # no room
                while True:
                    os.posix_fallocate(file.fileno(), path.stat().st_size, chunk)
    return path.unlink


def remount_read_only(folder: Path) -> None:
    """Make a mounted file system read-only; nothing may be open for writing on it."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
