"""Images of a stopped domain as NBD exports: read-only with their dirty bitmaps, or writable for a restore.

    with export_image("/var/lib/libvirt/images/a.qcow2", "qcow2", bitmaps=["checkpoint-1"]) as export:
        disk = NbdDisk(export.socket, export.name, "checkpoint-1")

qemu-nbd serves them over a unix socket in a folder of its own. It dies with us, and the folder goes with it (see child.py).
A usual export takes the image's locks: it fails if a domain has the image open, and while it lasts no domain can start with
it. A `shared` one takes none, so that a domain may start meanwhile; what was read since then is worth nothing, and whoever
asks for it has to watch the domain and the image (see unlocked.py).
"""

import contextlib
import json
import shutil
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DiskUnsupported, HypervisorError, ImageBusy, NbdDisconnected, TargetError
from engine.nbd.client import Client
from engine.source.child import Child, private_folder, running

EXPORT_NAME = "disk"
SOCKET_NAME = "nbd.sock"
START_SECONDS = 60.0  # opening an image with many bitmaps on a slow disk
BACKLOG = 16

IMAGE_FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class Export:
    """A served image: the socket's path, the export's name, and the size of the disk in it."""

    socket: str
    name: str
    size_bytes: int
    pid: int


@contextlib.contextmanager
def export_image(
    path: str,
    image_format: str,
    *,
    bitmaps: Sequence[str] = (),
    writable: bool = False,
    shared: bool = False,
    folder: Path | None = None,
) -> Iterator[Export]:
    """Serve the image at the absolute `path` for the time of a `with` block; many clients may connect.

    The format is never guessed: a guest could write a qcow2 header into its raw disk and so name any file of the host.
    `folder` is where the private folder is made. A writable export has to be flushed by a client before the block ends.
    Raises ImageBusy if the image is open elsewhere, DiskUnsupported if a bitmap is missing or inconsistent, TargetError
    (writable) or HypervisorError if it cannot be served for another reason.
    """
    if writable and (shared or bitmaps):
        raise ValueError("a writable export is neither shared nor has it bitmaps")
    arguments = _arguments(path, image_format, bitmaps, writable=writable, shared=shared)
    private = private_folder(folder)
    listener, address = _listen(private)
    with running(arguments, private, listener) as child:
        size_bytes = _wait_ready(child, address, path, writable=writable)
        yield Export(address, EXPORT_NAME, size_bytes, child.pid)


def image_source(path: str, image_format: str, *, read_only: bool, shared: bool = False) -> str:
    """Return an image as QEMU's `json:` file name, in which no character of the path has a meaning of its own.

    Raises DiskUnsupported for a format we do not know, OSError if there is nothing at `path`.
    """
    if image_format not in IMAGE_FORMATS:
        raise DiskUnsupported(disk=path, detail=f"images of format {image_format} are not supported")
    block_device = stat.S_ISBLK(Path(path).stat().st_mode)
    options = {
        "driver": image_format,
        "read-only": read_only,
        "force-share": shared,
        "file": {"driver": "host_device" if block_device else "file", "filename": path},
    }
    return "json:" + json.dumps(options)


def _arguments(path: str, image_format: str, bitmaps: Sequence[str], *, writable: bool, shared: bool) -> list[str]:
    try:
        source = image_source(path, image_format, read_only=not writable, shared=shared)
    except OSError as error:
        raise _error(path, str(error.strerror), writable=writable) from error
    options = ["--discard=unmap"] if writable else ["--read-only"]
    for bitmap in bitmaps:
        options += ["--bitmap", bitmap]
    # 0: any number of clients; each of our workers is one, and a limit would leave the next one waiting in silence
    return ["qemu-nbd", "--persistent", "--shared=0", "--export-name", EXPORT_NAME, *options, source]


def _listen(folder: Path) -> tuple[socket.socket, str]:
    """Return a socket that listens in `folder`, and its path; the folder goes if this fails."""
    address = str(folder / SOCKET_NAME)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:  # most often: the path is too long for a unix socket (107 bytes)
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise HypervisorError(operation="export", detail=f"cannot listen at {address}: {error}") from error
    return listener, address


def _wait_ready(child: Child, address: str, path: str, *, writable: bool) -> int:
    """Return the disk's size as soon as the export answers. Raises what the program's last words tell."""
    try:
        with Client.connect(address, EXPORT_NAME, silence_seconds=START_SECONDS) as client:
            return client.size_bytes
    except NbdDisconnected as error:
        raise _error(path, child.message() or str(error), writable=writable) from error


def _error(path: str, message: str, *, writable: bool) -> HypervisorError | TargetError:
    """Return the error that qemu-nbd's `message` stands for."""
    if "lock" in message and "Failed to get" in message:
        return ImageBusy(path=path)
    if "itmap" in message:  # "Bitmap 'x' is inconsistent", "Bitmap 'x' is not found"
        return DiskUnsupported(disk=path, detail=message)
    if writable:
        return TargetError(target=path, detail=message)
    return HypervisorError(operation="export", detail=message)
