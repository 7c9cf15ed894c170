"""A hypervisor to measure on: a private libvirtd, a domain with a copy of the disk, and bm-engine for it."""

import json
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.disk import BenchDisk
from tests.bench.process import Run, run
from tests.servers.guest import BlankDomain, DiskFile
from tests.servers.libvirtd import Libvirtd

_PASSPHRASE = "a passphrase of the benchmark"


class Host:
    """A `with` block. `folder` must be new, and is left to its owner. The domain has no system, so it does not disturb."""

    def __init__(self, folder: Path, disk: BenchDisk, *, running: bool) -> None:
        self.folder = folder
        self.image = folder / "vda.qcow2"
        shutil.copyfile(disk.image, self.image)
        self._libvirtd = Libvirtd(folder / "libvirtd")
        self._running = running
        self._passphrase = folder / "passphrase"
        self._passphrase.write_text(_PASSPHRASE)

    def __enter__(self) -> Self:
        self._libvirtd.__enter__()
        try:
            self.domain = BlankDomain(self.uri, [DiskFile("vda", self.image)], running=self._running)
            self.domain.__enter__()
        except BaseException:
            self._libvirtd.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.domain.close()
        finally:
            self._libvirtd.close()

    @property
    def uri(self) -> str:
        return self._libvirtd.uri

    @property
    def qemu_pid(self) -> int:
        """The process that the running domain is."""
        return self._libvirtd.qemu_pid(self.domain.name)

    def as_local(self, command: list[str]) -> list[str]:
        """Return a command line that runs `command` where qemu:///system is this host's libvirtd: some accept no other URI."""
        usual = self._libvirtd.folder / "run" / "libvirt" / "libvirt-sock"  # /run/libvirt there, see libvirtd.sh
        if not usual.is_symlink():
            usual.symlink_to(self.uri.partition("socket=")[2])
        return [*self._libvirtd.enter(), *command]

    def local(self, folder: Path) -> Path:
        """Return the storage file of a new, encrypted repository in `folder`."""
        return self.storage(folder / "storage.json", {"type": "local", "path": str(folder / "repository")})

    def storage(self, file: Path, settings: dict[str, Any]) -> Path:
        """Write a storage file, make an encrypted repository there, and return the file."""
        file.write_text(json.dumps(settings))
        self.engine("init", file, "--encrypt")
        return file

    def engine(self, verb: str, storage: Path, *arguments: str) -> Run:
        """Run bm-engine to its end."""
        return run([sys.executable, "-m", "engine.cli", *self._arguments(verb, storage, *arguments)])

    def observed(self, verb: str, storage: Path, *arguments: str) -> dict[str, float]:
        """Run bm-engine with a look inside (see inside.py) and return what was seen."""
        command = [sys.executable, "-m", "tests.bench.inside", str(time.monotonic())]
        output = run([*command, *self._arguments(verb, storage, *arguments)], keep_output=True).output
        return dict(json.loads(output.splitlines()[-1]))

    def _arguments(self, verb: str, storage: Path, *arguments: str) -> list[str]:
        options = ["--quiet", verb, "--storage", str(storage), "--passphrase-file", str(self._passphrase)]
        if verb in {"backup", "restore"}:
            options += ["--libvirt", self.uri, "--scratch", str(self.folder / "scratch")]
            options += ["--locks", str(self.folder / "locks"), "--catalog", str(self.folder / "catalog")]
        return [*options, *arguments]
