"""Real NBD servers as `with` blocks: qemu-nbd, nbdkit, and a virtual machine without a machine.

Each is a child that dies with the test, even by kill -9 (see engine/source/child.py), with its socket in a folder of its own.
"""

import contextlib
import itertools
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.nbd.client import Client
from engine.source.child import Child, private_folder, running
from tests.waiting import wait_until

START_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A running server: its socket, and the export's name."""

    socket: str
    export: str
    child: Child


@contextlib.contextmanager
def qemu_nbd(image: Path, *options: str, image_format: str = "raw", export: str = "vda") -> Iterator[Server]:
    """Serve an image by qemu-nbd, writable unless `--read-only` is among the options."""
    with _listening() as (folder, listener, address):
        command = ["qemu-nbd", "-t", "--shared=0", "-x", export, "-f", image_format, *options, str(image)]
        with running(command, folder, listener) as child:
            yield Server(address, export, child)


@contextlib.contextmanager
def nbdkit(plugin: str, *parameters: str, filters: Sequence[str] = (), options: Sequence[str] = ()) -> Iterator[Server]:
    """Serve a plugin of nbdkit through `filters`, the outermost first; parameters are `key=value`."""
    with _listening() as (folder, listener, address):
        chosen = [f"--filter={name}" for name in filters]
        command = ["nbdkit", "--foreground", *chosen, *options, plugin, *parameters]
        with running(command, folder, listener) as child:
            yield Server(address, "", child)


@contextlib.contextmanager
def _listening() -> Iterator[tuple[Path, socket.socket, str]]:
    folder = private_folder()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(folder / "nbd.sock"))
        listener.listen(16)
        yield folder, listener, str(folder / "nbd.sock")
    finally:
        listener.close()


class MiniVm:
    """QEMU's block layer with QMP and nothing else (qemu-storage-daemon): a virtual machine of disks, up in 20 ms.

    with MiniVm({"vda": Path("a.qcow2")}) as vm:
        vm.write("vda", 0, b"before")
        vm.add_bitmap("vda", "b1")
        vm.write("vda", 1 << 20, b"after")
        with vm.backup("vda", "b1") as server:     what libvirt's pull mode does: this instant, whatever is written now
            …

    The guest's writes go through a writable export, as those of a real guest go through virtio. Disks are named as nodes.
    """

    def __init__(self, disks: dict[str, Path], image_format: str = "qcow2") -> None:
        self._disks = disks
        self._image_format = image_format
        self._stack = contextlib.ExitStack()
        self._counter = itertools.count(1)
        self._guests: dict[str, Client] = {}

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder = private_folder()
        self.address = str(self.folder / "nbd.sock")
        qmp_path = str(self.folder / "qmp.sock")
        command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={self.address}"]
        command += ["--chardev", f"socket,id=qmp,path={qmp_path},server=on,wait=off", "--monitor", "chardev=qmp"]
        for name, path in self._disks.items():
            file = f"driver=file,node-name={name}-file,filename={path},discard=unmap"
            command += ["--blockdev", file]
            command += ["--blockdev", f"driver={self._image_format},node-name={name},file={name}-file,discard=unmap"]
            guest = f"type=nbd,id=guest-{name},node-name={name},name=guest-{name},writable=on"
            command += ["--export", guest]
        self.child = self._stack.enter_context(running(command, self.folder))
        self._qmp = self._stack.enter_context(_Qmp(qmp_path, self.child))
        for name in self._disks:
            self._guests[name] = self._stack.enter_context(Client.connect(self.address, f"guest-{name}"))

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result. Names have dashes, not underscores."""
        return self._qmp.run(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def write(self, disk: str, start: int, data: bytes) -> None:
        """Write as the guest."""
        self._guests[disk].write(start, data)

    def write_zeroes(self, disk: str, start: int, length: int) -> None:
        """Discard as the guest, so that the bytes read as zeros."""
        self._guests[disk].write_zeroes(start, length)

    def read(self, disk: str, start: int, length: int) -> bytes:
        return self._guests[disk].read(start, length)

    def add_bitmap(self, disk: str, name: str, *, persistent: bool = True) -> None:
        """Begin to record the disk's changes."""
        self.qmp("block-dirty-bitmap-add", node=disk, name=name, persistent=persistent)

    def remove_bitmap(self, disk: str, name: str) -> None:
        self.qmp("block-dirty-bitmap-remove", node=disk, name=name)

    @contextlib.contextmanager
    def backup(self, disk: str, bitmap: str = "", *, checkpoint: str = "") -> Iterator[Server]:
        """Export the disk as it is at this instant, with what `bitmap` has recorded as `qemu:dirty-bitmap:backup-DISK`.

        With `checkpoint`, a new bitmap of that name begins to record at the same instant.
        """
        number = next(self._counter)
        fleece, frozen, job, export = (f"{what}-{disk}-{number}" for what in ("fleece", "frozen", "job", "export"))
        scratch = self.folder / f"{fleece}.qcow2"
        size = self._guests[disk].size_bytes
        self.qmp("blockdev-create", job_id=f"create-{number}", options=self._scratch_file(scratch))
        self._finish(f"create-{number}")
        self.qmp("blockdev-add", node_name=f"{fleece}-file", driver="file", filename=str(scratch))
        options = {"driver": "qcow2", "file": f"{fleece}-file", "size": size}
        self.qmp("blockdev-create", job_id=f"format-{number}", options=options)
        self._finish(f"format-{number}")
        self.qmp("blockdev-add", node_name=fleece, driver="qcow2", file=f"{fleece}-file", backing=disk)
        self.qmp("transaction", actions=self._actions(disk, fleece, job, bitmap, frozen, checkpoint))
        bitmaps = [frozen] if bitmap else []
        self.qmp("block-export-add", type="nbd", id=export, node_name=fleece, name=export, bitmaps=bitmaps)
        try:
            yield Server(self.address, export, self.child)
        finally:
            self.qmp("block-export-del", id=export, mode="hard")
            wait_until(lambda: all(one["id"] != export for one in self.qmp("query-block-exports")), 10, "export's end")
            self.qmp("job-cancel", id=job)
            self._finish(job)
            self.qmp("blockdev-del", node_name=fleece)
            self.qmp("blockdev-del", node_name=f"{fleece}-file")

    def frozen_bitmap(self, server: Server) -> str:
        """Return the name of the bitmap that a `backup` export offers."""
        return server.export.replace("export-", "frozen-", 1)

    @staticmethod
    def _scratch_file(path: Path) -> dict[str, Any]:
        return {"driver": "file", "filename": str(path), "size": 0}

    @staticmethod
    def _actions(disk: str, fleece: str, job: str, bitmap: str, frozen: str, checkpoint: str) -> list[dict[str, Any]]:
        actions: list[tuple[str, dict[str, Any]]] = []
        if bitmap:
            actions += [("block-dirty-bitmap-add", {"node": fleece, "name": frozen, "disabled": True})]
            merge = {"node": fleece, "target": frozen, "bitmaps": [{"node": disk, "name": bitmap}]}
            actions += [("block-dirty-bitmap-merge", merge)]
        if checkpoint:
            actions += [("block-dirty-bitmap-add", {"node": disk, "name": checkpoint, "persistent": True})]
        actions += [("blockdev-backup", {"device": disk, "target": fleece, "sync": "none", "job-id": job})]
        return [{"type": kind, "data": data} for kind, data in actions]

    def _finish(self, job: str) -> None:
        def state() -> str:
            found = [one for one in self.qmp("query-jobs") if one["id"] == job]
            return str(found[0]["status"]) if found else "gone"

        wait_until(lambda: state() in {"concluded", "gone", "null"}, 10, f"the end of job {job}")
        if state() == "concluded":
            self.qmp("job-dismiss", id=job)


class _Qmp:
    """One QMP session; events are skipped."""

    def __init__(self, path: str, child: Child) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_SECONDS)
        wait_until(lambda: Path(path).exists() or child.has_ended(), START_SECONDS, "the monitor")
        try:
            wait_until(lambda: self._socket.connect_ex(path) == 0 or child.has_ended(), START_SECONDS, "the monitor")
            self._lines = self._socket.makefile("r")
            self._lines.readline()
            self.run("qmp_capabilities", {})
        except BaseException as error:
            self._socket.close()
            raise RuntimeError(child.message()) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def run(self, command: str, arguments: dict[str, Any]) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{command}: the monitor has gone")
