"""A private libvirtd with its own QEMU processes, as a `with` block; it leaves nothing behind, however its owner ends.

    owner ── pipe ── unshare --kill-child ── bash (process 1: libvirtd.sh) ─┬─ libvirtd
                     own mounts, own pids                                   └─ qemu, qemu, …

The namespace ends with its process 1: when this object is closed, when unshare is killed, and when the pipe closes because
the owner died by kill -9. The system's libvirtd, if there is one, is never spoken to. `restart` and `kill` end libvirtd
alone: domains, and backup jobs in them, go on as they do on a real hypervisor.
"""

import itertools
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt
import libvirt_qemu

from tests.waiting import wait_until

libvirt.registerErrorHandler(lambda _context, _error: None, None)  # refused calls are expected here, not worth a line

_SCRIPT = Path(__file__).with_name("libvirtd.sh")
_START_SECONDS_MAX = 60.0  # the first start of a fresh cache probes QEMU's abilities: 1-5 s on an idle machine
_SOCKET_PATH_MAX = 100  # sockaddr_un holds 107 characters; the daemon makes `libvirt-sock-ro` and friends beside ours

_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
dynamic_ownership = 0
stdio_handler = "file"
"""
_LIBVIRTD_CONF = """\
unix_sock_dir = "{sockets}"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:stderr"
host_uuid = "{host_uuid}"
"""


class Libvirtd:
    """A libvirtd of our own, started at `with`. `folder` must be new or empty, and is left to its owner with the logs in it."""

    def __init__(self, folder: Path, like: "Libvirtd | None" = None) -> None:
        """`like` is another one that has probed QEMU's abilities already."""
        self.folder = folder
        self._like = like
        self.log = folder / "log" / "libvirtd.log"
        self._init: subprocess.Popen[str] | None = None
        self._sockets = Path()

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self._sockets / 'libvirt-sock'}"

    def __enter__(self) -> Self:
        for name in ("run", "lib", "etc", "cache", "log"):
            (self.folder / name).mkdir(parents=True)
        if self._like is not None:
            shutil.copytree(self._like.folder / "cache", self.folder / "cache", dirs_exist_ok=True)
        short = self.folder / "sockets"
        self._sockets = (
            Path(tempfile.mkdtemp(prefix="bm-libvirt-")) if len(str(short)) > _SOCKET_PATH_MAX - 20 else short
        )
        self._sockets.mkdir(exist_ok=True)
        (self.folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        (self.folder / "etc" / "libvirtd.conf").write_text(
            _LIBVIRTD_CONF.format(sockets=self._sockets, host_uuid=uuid.uuid4())
        )
        namespaces = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc", "--propagation", "private"]
        with (self.folder / "log" / "init.log").open("w") as log:
            self._init = subprocess.Popen(
                [*namespaces, "bash", str(_SCRIPT), str(self.folder.resolve()), *self._outside()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                start_new_session=True,  # Ctrl-C in a terminal reaches the tests alone; they end this in order
            )
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        self._tell("start")
        wait_until(self._answers, _START_SECONDS_MAX, f"libvirtd to answer, see {self.log}")

    def kill(self) -> None:
        """End libvirtd by kill -9; domains keep running."""
        self._tell("kill")

    def restart(self) -> None:
        """Stop libvirtd politely and start it anew; domains keep running."""
        self._tell("stop")
        self.start()

    def close(self) -> None:
        """End libvirtd and every domain at once. May be called twice."""
        init, self._init = self._init, None
        if init is None:
            return
        init.kill()  # unshare; --kill-child takes the namespace along
        init.wait()
        for stream in (init.stdin, init.stdout):
            if stream is not None:
                stream.close()
        for outside in self._outside():
            shutil.rmtree(outside, ignore_errors=True)

    def qemu_pid(self, name: str) -> int:
        """Return the process id, as this process sees it, of a running domain's QEMU."""
        wanted = f"guest={name},"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_qemu(entry, wanted):
                return int(entry.name)
        raise LookupError(name)

    def enter(self) -> list[str]:
        """Return the beginning of a command line that runs a program with the daemon's mounts, as QEMU sees files."""
        return ["nsenter", f"--mount={self._namespace_file()}", "--"]

    def _is_qemu(self, entry: Path, wanted: str) -> bool:
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            inside = (entry / "ns" / "mnt").readlink() == self._namespace()
        except OSError:  # it ended, or belongs to somebody we may not look at
            return False
        return inside and any(one.decode(errors="replace").startswith(wanted) for one in itertools.islice(command, 4))

    def _namespace(self) -> Path:
        return self._namespace_file().readlink()

    def _namespace_file(self) -> Path:
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        return Path(f"/proc/{children[0]}/ns/mnt")

    def _outside(self) -> list[str]:
        """Return the sockets' folder if it had to be made elsewhere, for the sake of a short path."""
        return [] if self._sockets.parent == self.folder else [str(self._sockets)]

    def _tell(self, word: str) -> None:
        init = self._init
        assert init is not None
        assert init.stdin is not None
        assert init.stdout is not None
        init.stdin.write(word + "\n")
        init.stdin.flush()
        answer = init.stdout.readline().strip()
        if answer != word:
            raise RuntimeError(f"libvirtd.sh did not {word}: {(self.folder / 'log' / 'init.log').read_text()}")

    def _answers(self) -> bool:
        """Tell whether libvirtd accepts calls, and is connected again to each domain that outlived its predecessor."""
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError:
            return False
        try:
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-status"}', 0)  # waits for the reconnection
        finally:
            connection.close()
        return True
