"""What the demo plays on: a hypervisor, a storage and a controller, all real and all gone afterwards."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.units import MIB
from tests.servers.agent import Agent
from tests.servers.controller import Controller
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.servers.sshd import Sshd

DISK_BYTES = 1024 * MIB
FILES_BYTES = 300 * MIB
PROGRAMS = Path(sys.executable).parent  # bm-controller, bm-agent, bm-engine and bmctl lie beside the interpreter


@dataclass
class Stage:
    """Everything that the demo starts. `folder` has the pieces' files and logs."""

    folder: Path
    libvirtd: Libvirtd
    sshd: Sshd
    controller: Controller
    domain: BlankDomain
    disk: DiskFile

    def bmctl(self, *arguments: str, live: bool = False) -> subprocess.CompletedProcess[str]:
        """Run bmctl; with `live` its progress goes to the terminal, and stdout is kept. Raises CalledProcessError."""
        errors = None if live else subprocess.PIPE
        return subprocess.run(
            [PROGRAMS / "bmctl", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, check=True, env=self.environment,
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "BMCTL_CONFIG": str(self.folder / "bmctl.json")}

    def write(self, start: int, length: int, pattern: int) -> None:
        """Write into the running domain's disk, as its guest would, and see that it reaches the image."""
        self.domain.write("vda", start, length, pattern)

    def copy(self, name: str) -> Path:
        """Copy the disk as it is at this instant: the guest is paused, what QEMU holds is flushed, then it goes on."""
        target = self.folder / name
        self.domain.handle.suspend()
        try:
            command = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(self.disk.path), str(target)]
            subprocess.run(command, check=True)
        finally:
            self.domain.handle.resume()
        return target

    def matches(self, copy: Path) -> bool:
        """Compare the domain's image with a copy, byte by byte."""
        command = ["qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", str(copy), str(self.disk.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def stage(build: Path) -> Iterator[Stage]:
    """Set everything up in a new folder below `build`, and take it away again, also after Ctrl-C."""
    build.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=build))
    try:
        with contextlib.ExitStack() as stack:
            disk = make_disk(folder)
            libvirtd = stack.enter_context(Libvirtd(folder / "libvirt"))
            domain = stack.enter_context(BlankDomain(libvirtd.uri, [disk]))
            (folder / "ssh").mkdir()
            sshd = stack.enter_context(Sshd(folder / "ssh"))
            controller = stack.enter_context(Controller(folder / "controller"))
            yield Stage(folder, libvirtd, sshd, controller, domain, disk)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def agent(on: Stage, token: str) -> Iterator[Agent]:
    """Enroll an agent with a one-time token and let it run for the block."""
    with Agent(on.folder / "agent", controller=on.controller.api, token=token, libvirt_uri=on.libvirtd.uri) as running:
        yield running


def make_disk(folder: Path) -> DiskFile:
    """Make a qcow2 image that holds an ext4 file system with some of this machine's files."""
    tree, raw = folder / "tree", folder / "disk.raw"
    left = FILES_BYTES
    for place, folders, files in os.walk("/usr/lib"):
        folders.sort()
        for name in sorted(files):
            source = Path(place, name)
            if source.is_symlink() or not source.is_file() or not 0 < source.stat().st_size <= left:
                continue
            target = tree / source.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            left -= source.stat().st_size
    with raw.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "no_copy_xattrs", "-d", tree, raw], check=True, capture_output=True)
    shutil.rmtree(tree)
    disk = DiskFile("vda", folder / "vda.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk.path], check=True)
    raw.unlink()
    return disk
