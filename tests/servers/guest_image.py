"""What the test guest boots: Debian's cloud kernel, and an initramfs made of busybox and the QEMU guest agent.

    build/cache/linux-image-….deb ──► kernel (bzImage), modules ─┐
    busybox-static, qemu-ga and its libraries (this machine's) ──┤
    record-writer (guest_writer.c, compiled here) ───────────────┴─► guest/<digest>/{kernel,initramfs}

The package is fetched once by `apt-get download`; what is made from it lies under a digest of all inputs, so a changed script
or a new kernel makes a new image. Several processes may ask at once: a file lock lets one of them do the work.
"""

import contextlib
import fcntl
import gzip
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[2] / "build" / "cache"
_INIT = Path(__file__).with_name("guest_init.sh")
_WRITER = Path(__file__).with_name("guest_writer.c")
_META_PACKAGE = "linux-image-cloud-amd64"
_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "virtio_console", "loop",
)  # fmt: skip
# What the agent runs before a freeze and after a thaw: it waits as guest_init.sh says, and keeps a record.
_FREEZE_HOOK = """#!/bin/sh
if [ $1 = freeze ]; then
    [ -e /run/freeze-seconds ] && sleep $(cat /run/freeze-seconds)
    while [ -e /run/freeze-hold ]; do usleep 50000; done
fi
echo $1 >>/run/freeze-hook.log
"""
# The agent's guest-shutdown runs this; without ACPI a reboot is the only way out, and the domain says on_reboot=destroy.
_SHUTDOWN = "#!/bin/sh\nsync\nreboot -f\n"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files to boot from; `folder` is theirs alone and stays for later runs."""

    folder: Path
    kernel: Path
    initramfs: Path


def guest_image() -> GuestImage:
    """Return the image, made now if it is not there; takes 5 s the first time and needs apt's archive for that."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "guest.lock"):
        package = _kernel_package()
        folder = CACHE / "guest" / _digest(package)
        image = GuestImage(folder, folder / "kernel", folder / "initramfs")
        if not image.initramfs.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(image, package)
    return image


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` for the block; waits for other processes."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kernel_package() -> Path:
    found = sorted(CACHE.glob("linux-image-*-cloud-amd64_*.deb"))
    if found:
        return found[-1]
    depends = subprocess.run(["apt-cache", "depends", _META_PACKAGE], check=True, capture_output=True, text=True).stdout
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    if name is None:
        raise RuntimeError(f"apt knows no {_META_PACKAGE}: run `apt-get update`")
    download = CACHE / "download"
    download.mkdir(exist_ok=True)
    subprocess.run(
        ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name[1]],
        check=True, cwd=download, capture_output=True,
    )  # fmt: skip
    (package,) = download.glob("*.deb")
    return package.rename(CACHE / package.name)


def _digest(package: Path) -> str:
    """Name all inputs: our own files by content, programs of the machine by size and time."""
    programs = (Path("/bin/busybox"), Path("/usr/sbin/qemu-ga"), Path(shutil.which("qemu-system-x86_64") or ""))
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in programs]
    inputs = hashlib.sha256(f"{package.name} {stamps}".encode())
    for path in (_INIT, _WRITER, Path(__file__), Path(__file__).with_name("guest.py")):
        inputs.update(path.read_bytes())
    return inputs.hexdigest()[:16]


def _make(image: GuestImage, package: Path) -> None:
    unpacked = image.folder / "package"
    shutil.rmtree(unpacked, ignore_errors=True)
    subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    kernel.rename(image.kernel)
    files: dict[str, bytes] = {
        "init": _INIT.read_bytes(),
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        "bin/qemu-ga": Path("/usr/sbin/qemu-ga").read_bytes(),
        "etc/fsfreeze-hook": _FREEZE_HOOK.encode(),
        "bin/record-writer": _compile(_WRITER, image.folder / "record-writer"),
        "sbin/shutdown": _SHUTDOWN.encode(),
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
    }
    for name in _MODULES:
        (module,) = unpacked.rglob(f"{name}.ko")
        files[f"modules/{name}.ko"] = module.read_bytes()
    for library in _libraries(Path("/usr/sbin/qemu-ga")):
        files[str(library).lstrip("/")] = library.read_bytes()
    temporary = image.initramfs.with_suffix(".part")
    temporary.write_bytes(gzip.compress(_cpio(files), compresslevel=1))
    shutil.rmtree(unpacked)
    temporary.rename(image.initramfs)


def _compile(source: Path, target: Path) -> bytes:
    """Return a program for a guest that has no libraries."""
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", str(target), str(source)], check=True)
    return target.read_bytes()


def _libraries(program: Path) -> list[Path]:
    listing = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]


def _cpio(files: dict[str, bytes]) -> bytes:
    """Return a "newc" archive, the only format that Linux takes. Source: Documentation/driver-api/early-userspace/buffer-format."""
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    archive = bytearray()
    entries: list[tuple[str, int, bytes]] = [(folder, 0o040755, b"") for folder in sorted(folders)]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)
