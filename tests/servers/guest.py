"""Domains to test with, as `with` blocks: a blank one that only has disks, and a real small Linux with the guest agent.

    BlankDomain   no system, 16 MiB; its disks are written through QEMU itself. Starts in 0.5 s.
    RealGuest     Debian's kernel, busybox, qemu-ga, ext4 on vda and vdb. Booted once (5 s), saved with its disks under
                  build/cache, and restored from there for each test: the agent answers in about 1 s.

Both run under QEMU's instruction emulator: hardware virtualization is not needed, and is not there on every test machine.
"""

import base64
import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import libvirt
import libvirt_qemu

from tests.servers.guest_image import GuestImage, guest_image, locked
from tests.waiting import wait_until

MIB = 1 << 20
AGENT_CHANNEL = "org.qemu.guest_agent.0"
WRITER_CHANNEL = "bm.acknowledged"  # what guest_writer.c promises comes out as a file on the host
_BOOT_SECONDS_MAX = 120.0
_SHELL_SECONDS_MAX = 30.0
_SHELL_TRIES = 3
_SILENCE_SECONDS = 2.0
_GUEST_DISK_BYTES = {"vda": 64 * MIB, "vdb": 32 * MIB, "vdc": 256 * MIB}  # as many as a guest has formats
_SPARE = "vdc"  # without a file system, full of bytes that are not zero: overwriting it takes room in a scratch file
_TEMPLATE_NAME = "bm-guest-template"
_TEMPLATE_UUID = "b6ad1a2c-0000-4000-8000-000000000000"


@dataclass(frozen=True, slots=True)
class DiskFile:
    """An image of a test's domain: a file or, with `kind` block, a block device."""

    target: str
    path: Path
    format: str = "qcow2"
    bus: str = "virtio"
    kind: str = "file"

    def create(self, size_bytes: int, *options: str) -> Self:
        """Make the empty image; `options` go to qemu-img (such as `-o compat=0.10`)."""
        command = ["qemu-img", "create", "-q", "-f", self.format, *options, str(self.path), str(size_bytes)]
        subprocess.run(command, check=True)
        return self

    def xml(self) -> str:
        return (
            f"<disk type='{self.kind}' device='disk'><driver name='qemu' type='{self.format}'/>"
            f"<source {'dev' if self.kind == 'block' else 'file'}={quoteattr(str(self.path))}/>"
            f"<target dev='{self.target}' bus='{self.bus}'/></disk>"
        )


class _Domain:
    """What both kinds share: a libvirt connection of their own, and an end that leaves nothing."""

    def __init__(self, uri: str, name: str, domain_uuid: str) -> None:
        self.name = name
        self.uuid = domain_uuid
        self._uri = uri
        self._connection: Any = None

    @property
    def handle(self) -> Any:
        """libvirt's virDomain, looked up now, over a new connection when libvirtd was restarted since the last time."""
        try:
            return self.connection.lookupByUUIDString(self.uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise
        self._connection = None
        return self.connection.lookupByUUIDString(self.uuid)

    @property
    def connection(self) -> Any:
        if self._connection is None:
            self._connection = libvirt.open(self._uri)
        return self._connection

    def close(self) -> None:
        """Destroy and undefine the domain, whatever its state. May be called twice."""
        with contextlib.suppress(libvirt.libvirtError):  # not there any more
            handle = self.handle
            if handle.isActive():
                handle.destroy()
        with contextlib.suppress(libvirt.libvirtError):
            self.handle.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            )
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state(self) -> tuple[int, int]:
        state, reason = self.handle.state()
        return state, reason

    def qmp(self, command: str, **arguments: object) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(libvirt_qemu.qemuMonitorCommand(self.handle, text, 0))
        return reply["return"]

    def device(self, target: str) -> str:
        """Return QEMU's path of a disk's device, as HMP's `qemu-io -d` takes it."""
        found = re.search(rf"<target dev='{target}'.*?<alias name='([^']+)'/>", self.handle.XMLDesc(), re.S)
        assert found is not None
        return next(str(one["qdev"]) for one in self.qmp("query-block") if found[1] in one["qdev"].split("/"))

    def write(self, target: str, start: int, length: int, pattern: int) -> None:
        """Write `length` bytes of value `pattern` at `start` of a disk, through QEMU, as a guest's write would come."""
        self._io(target, f"write -P {pattern} {start} {length}")

    def discard(self, target: str, start: int, length: int) -> None:
        """Make a part of a disk zeros that take no room, as a guest's trim does on a disk that allows it."""
        self._io(target, f"write -z -u {start} {length}")

    def _io(self, target: str, what: str) -> None:
        command = f'qemu-io -d {self.device(target)} "{what}"'
        libvirt_qemu.qemuMonitorCommand(self.handle, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)


class BlankDomain(_Domain):
    """A domain without a system. Persistent and running, unless told otherwise; `devices` is more XML for <devices>."""

    def __init__(
        self,
        uri: str,
        disks: Sequence[DiskFile],
        *,
        persistent: bool = True,
        running: bool = True,
        devices: str = "",
        elements: str = "",
        os: str = "",
    ) -> None:
        domain_uuid = str(uuid.uuid4())
        super().__init__(uri, f"bm-blank-{domain_uuid[:8]}", domain_uuid)
        self.disks = tuple(disks)
        self._persistent, self._running = persistent, running
        self._devices, self._elements, self._os = devices, elements, os

    def xml(self) -> str:
        disks = "".join(disk.xml() for disk in self.disks)
        return (
            f"<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>16</memory>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type>{self._os}</os>{self._elements}"
            f"<devices>{disks}{self._devices}</devices></domain>"
        )

    def __enter__(self) -> Self:
        try:
            if self._persistent:
                self.connection.defineXML(self.xml())
                if self._running:
                    self.handle.create()
            else:
                self.connection.createXML(self.xml())
        except BaseException:
            self.close()
            raise
        return self


class RealGuest(_Domain):
    """A running Linux with `formats` of vda and vdb, their ext4 on /data1 and /data2, and an agent that answers.

    A third format is that of vdc, which is the test's to write to. `folder` takes its images and sockets and must be new
    or empty.
    """

    def __init__(self, uri: str, folder: Path, formats: Sequence[str] = ("qcow2", "qcow2")) -> None:
        domain_uuid = str(uuid.uuid4())
        super().__init__(uri, _TEMPLATE_NAME[: -len("template")] + domain_uuid[:8], domain_uuid)
        self.folder = folder
        self.disks = tuple(
            DiskFile(target, folder / f"{target}.{kind}", kind)
            for target, kind in zip(_GUEST_DISK_BYTES, formats, strict=False)
        )

    def __enter__(self) -> Self:
        template = _template(self._uri, len(self.disks))
        self.folder.mkdir(parents=True, exist_ok=True)
        for disk in self.disks:
            command = ["qemu-img", "convert", "-f", "raw", "-O", disk.format]
            subprocess.run([*command, str(template / f"{disk.target}.raw"), str(disk.path)], check=True)
        memory = self.folder / "memory"
        shutil.copyfile(template / "memory", memory)
        _rename_saved(memory, self.name, self.uuid)
        xml = _guest_xml(guest_image(), self.name, self.uuid, self.disks, self.folder)
        try:
            self.connection.restoreFlags(str(memory), xml, 0)
            memory.unlink()
            wait_until(self.agent_answers, _BOOT_SECONDS_MAX, "the guest agent")
        except BaseException:
            self.close()
            raise
        return self

    def agent_answers(self) -> bool:
        try:
            libvirt_qemu.qemuAgentCommand(self.handle, '{"execute": "guest-ping"}', 1, 0)
        except libvirt.libvirtError:
            return False
        return True

    def freeze_status(self) -> str:
        """Return `frozen` or `thawed` as the guest agent says it."""
        reply = libvirt_qemu.qemuAgentCommand(self.handle, '{"execute": "guest-fsfreeze-status"}', 2, 0)
        return str(json.loads(reply)["return"])

    def run(self, command: str) -> str:
        """Run a shell command in the guest over its console, which needs no agent, and return what it prints."""
        return _shell(self.folder / "console", command)

    def guest_exec(self, command: str) -> str:
        """Run a shell command through the guest agent, and return what it prints."""
        request = {
            "execute": "guest-exec",
            "arguments": {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True},
        }
        pid = json.loads(libvirt_qemu.qemuAgentCommand(self.handle, json.dumps(request), 5, 0))["return"]["pid"]
        ask = json.dumps({"execute": "guest-exec-status", "arguments": {"pid": pid}})

        def ended() -> Any:
            status = json.loads(libvirt_qemu.qemuAgentCommand(self.handle, ask, 5, 0))["return"]
            return status if status["exited"] else None

        status = wait_until(ended, _SHELL_SECONDS_MAX, f"`{command}` in the guest")
        if status["exitcode"] != 0:
            raise RuntimeError(f"`{command}` in the guest: {status}")
        return base64.b64decode(status.get("out-data", "")).decode()

    def write_file(self, path: str, text: str) -> None:
        """Write a small file in the guest, and bring it to the disk."""
        self.run(f"printf %s {shlex.quote(text)} > {shlex.quote(path)}; sync")

    def hang_agent(self) -> None:
        """Stop the agent's process: its channel stays connected, and nothing answers."""
        self.run("kill -STOP $(pidof qemu-ga)")

    def wake_agent(self) -> None:
        self.run("kill -CONT $(pidof qemu-ga)")

    def stop_agent(self) -> None:
        """End the agent, so that libvirt sees the channel disconnected."""
        self.run("touch /run/agent-off; kill -9 $(pidof qemu-ga)")
        wait_until(lambda: self._agent_channel() == "disconnected", 10, "the channel to be disconnected")

    def _agent_channel(self) -> str:
        """Return what libvirt says of the agent's channel; the guest has another one."""
        root = ET.fromstring(self.handle.XMLDesc())
        (target,) = root.iterfind("./devices/channel/target[@name='org.qemu.guest_agent.0']")
        return target.get("state", "")

    def slow_freeze(self, seconds: float) -> None:
        """Make each freeze wait in the agent's hook first, as a guest's databases do."""
        self.run(f"echo {seconds} > /run/freeze-seconds")

    def hold_freeze(self) -> None:
        """Make a freeze hang in the agent's hook until `release_freeze`: begun, not done, and not to be called back."""
        self.run("touch /run/freeze-hold")

    def release_freeze(self) -> None:
        self.run("rm -f /run/freeze-hold")

    def freeze_calls(self) -> list[str]:
        """Return what the agent did, oldest first: `freeze` and `thaw`."""
        return self.run("cat /run/freeze-hook.log 2>/dev/null; true").split()

    def start_writer(self) -> None:
        """Write a counter to /data1/counter and then to /data2/counter, each synced, on and on.

        At any one instant of both disks the first is equal to the second or one ahead.
        """
        loop = (
            "n=0; while :; do n=$((n+1)); printf %08d $n > /run/n; for f in /data1/counter /data2/counter; do "
            "dd if=/run/n of=$f conv=notrunc,fsync 2>/dev/null; done; done"
        )
        self.run("for f in /data1/counter /data2/counter; do printf 00000000 > $f; done; sync")
        self.run(f"( {loop} ) </dev/null >/dev/null 2>&1 &")

    def written(self) -> int:
        """Return the writer's count as the guest sees it."""
        return int(self.run("cat /data2/counter"))


def file_of(image: Path, path: str) -> bytes:
    """Return a file's bytes from a raw ext4 image, read without mounting and without replaying its journal."""
    return subprocess.run(["debugfs", "-R", f"cat {path}", str(image)], check=True, capture_output=True).stdout


def needs_recovery(image: Path) -> bool:
    """Tell whether a raw ext4 image was in use at its instant; a frozen or cleanly unmounted one is not."""
    command = ["dumpe2fs", "-h", str(image)]
    return "needs_recovery" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_file_system(image: Path) -> None:
    """Raise unless e2fsck finds a raw ext4 image (after its journal is replayed, in place) without any fault."""
    subprocess.run(["e2fsck", "-fy", "-E", "journal_only", str(image)], capture_output=True, check=False)
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


def _guest_xml(image: GuestImage, name: str, domain_uuid: str, disks: Sequence[DiskFile], folder: Path) -> str:
    # acpi=off saves 1-2 s of boot. So a shutdown is a reboot, which ends the domain; see sbin/shutdown in guest_image.py.
    cmdline = "console=ttyS0 quiet panic=-1 acpi=off mitigations=off nokaslr tsc=reliable"
    return f"""<domain type='qemu'><name>{name}</name><uuid>{domain_uuid}</uuid><memory unit='MiB'>192</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type>
        <kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd><cmdline>{cmdline}</cmdline></os>
      <cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu><on_reboot>destroy</on_reboot>
      <devices>{"".join(disk.xml() for disk in disks)}
        <serial type='unix'><source mode='bind' path='{escape(str(folder / "console"))}'/><target port='0'/></serial>
        <channel type='unix'><source mode='bind'/><target type='virtio' name='{AGENT_CHANNEL}'/></channel>
        <channel type='file'><source path='{escape(str(folder / WRITER_CHANNEL))}'/>
          <target type='virtio' name='{WRITER_CHANNEL}'/></channel>
        <memballoon model='none'/></devices></domain>"""


def _template(uri: str, disk_count: int) -> Path:
    """Return the folder with a guest's saved memory and its disks of that instant; boots one if there is none."""
    image = guest_image()
    folder = image.folder / f"saved-{disk_count}"
    with locked(image.folder / "saved.lock"):
        if not folder.exists():
            part = image.folder / "saved.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _boot_and_save(uri, image, part, list(_GUEST_DISK_BYTES)[:disk_count])
            part.rename(folder)
    return folder


def _boot_and_save(uri: str, image: GuestImage, folder: Path, targets: Sequence[str]) -> None:
    disks = [DiskFile(target, folder / f"{target}.raw", "raw") for target in targets]
    for disk in disks:
        if disk.target == _SPARE:
            _fill(disk.path, _GUEST_DISK_BYTES[_SPARE])
            continue
        disk.create(_GUEST_DISK_BYTES[disk.target])
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.path], check=True)
    connection = libvirt.open(uri)
    try:
        xml = _guest_xml(image, _TEMPLATE_NAME, _TEMPLATE_UUID, disks, folder)
        domain = connection.createXML(xml)
        try:
            wait_until(lambda: "state='connected'" in domain.XMLDesc(), _BOOT_SECONDS_MAX, "the guest to boot")
            _shell(folder / "console", "sync; echo 3 > /proc/sys/vm/drop_caches")
            domain.save(str(folder / "memory"))
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
    finally:
        connection.close()


def _fill(image: Path, size_bytes: int) -> None:
    with image.open("wb") as file:
        for start in range(0, size_bytes, MIB):
            file.write(bytes([1 + start // MIB % 255]) * MIB)


def _rename_saved(memory: Path, name: str, domain_uuid: str) -> None:
    """Give a saved domain another name and UUID of equal length: libvirt refuses both as changes at restore time."""
    with memory.open("r+b") as file:
        head = file.read(64 << 10)
        for old, new in ((_TEMPLATE_NAME, name), (_TEMPLATE_UUID, domain_uuid)):
            assert len(old) == len(new)
            head = head.replace(old.encode(), new.encode())
        file.seek(0)
        file.write(head)


class _GarbledError(Exception):
    """The guest's serial port lost a byte of the line, as it does when the guest is stopped while it is sent."""


def _shell(console: Path, command: str) -> str:
    """Run one command line in the shell behind a console socket; it sees no standard input."""
    for _ in range(_SHELL_TRIES - 1):
        with contextlib.suppress(_GarbledError):
            return _shell_once(console, command)
    return _shell_once(console, command)


def _shell_once(console: Path, command: str) -> str:
    mark = uuid.uuid4().hex
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(console))
        _say(
            peer, rf"begin-{mark}\r?\n", f"\necho begin-{mark}\n", again_seconds=0.5
        )  # a shell that just starts misses bytes
        output, code = _say(
            peer, rf"end-{mark} (\d+)\r?\n", f"eval {shlex.quote(command)} </dev/null 2>&1; echo end-{mark} $?\n"
        )
    output = re.sub(rf"begin-{mark}\r?\n", "", output)
    if code != "0":
        raise RuntimeError(f"`{command}` in the guest ended with {code}: {output}")
    return output


def _say(peer: socket.socket, wanted: str, line: str, again_seconds: float = 0) -> tuple[str, str]:
    """Send `line` and read until `wanted` matches; return what came before it, and its first group if it has one."""
    text = ""
    deadline = time.monotonic() + _SHELL_SECONDS_MAX
    peer.sendall(line.encode())
    peer.settimeout(again_seconds or _SILENCE_SECONDS)
    while (found := re.search(wanted, text)) is None:
        if "sh: eval: line 0: syntax error" in text:  # none of its commands ran
            raise _GarbledError(text)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guest's shell: {line!r} gave {text!r}")
        try:
            text += peer.recv(4096).decode(errors="replace")
        except TimeoutError:  # an empty line ends one whose end was lost, and is nothing to a shell that is at work
            peer.sendall(line.encode() if again_seconds else b"\n")
    return text[: found.start()], found[1] if found.re.groups else ""
