"""Block devices to test with: loop devices over files, as disks of a domain. Needs root."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.servers.guest import DiskFile


class BlockDisk(DiskFile):
    """A block device of a test's domain; `path` is the device."""

    def xml(self) -> str:
        return (
            f"<disk type='block' device='disk'><driver name='qemu' type='{self.format}'/>"
            f"<source dev={quoteattr(str(self.path))}/><target dev='{self.target}' bus='{self.bus}'/></disk>"
        )


@contextmanager
def loop_device(image: Path, size_bytes: int) -> Iterator[Path]:
    """Give a new file of zeros as a block device of its size, and take the device away again."""
    with image.open("xb") as file:
        file.truncate(size_bytes)
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
