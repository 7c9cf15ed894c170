"""The private libvirtd leaves nothing behind, even when its owner is killed."""

import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

_CHECKOUT = Path(__file__).parents[2]
_OWNER = """
import sys
from pathlib import Path
from tests.servers.guest import BlankDomain
from tests.servers.libvirtd import Libvirtd
with Libvirtd(Path(sys.argv[1])) as daemon, BlankDomain(daemon.uri, []) as domain:
    print(daemon.qemu_pid(domain.name), daemon._init.pid, daemon.uri.partition("=")[2], flush=True)
    sys.stdin.read()
"""


def test_a_killed_owner_takes_its_domains_along(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path / "d")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_CHECKOUT,
    )
    try:
        assert owner.stdout is not None
        qemu, init, sockets = owner.stdout.readline().decode().split()
    finally:
        owner.kill()
        owner.communicate()
    wait_until(lambda: not any(_lives(pid) for pid in (qemu, init)), 20, "QEMU and the namespace to end")
    if tmp_path not in Path(sockets).parents:
        assert not Path(sockets).parent.exists()


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
