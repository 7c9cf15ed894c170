"""Which disks of a running domain must not be read over NBD, because QEMU would crash, and the guest with it.

QEMU's NBD server lets go of a client in the thread that serves the client's disk. Since the fix for CVE-2024-7409 (7.2.14, and
whatever a vendor has put into older ones) an assertion there ends QEMU unless that is the main thread: with an I/O thread,
the first connection that is closed kills the guest, whoever made it. QEMU 9.0 closes clients in the main thread. Observed with
Debian's 7.2.22: `nbd_blockdev_client_closed: Assertion `qemu_in_main_thread() && nbd_server' failed`, four times in six.
"""

from engine.hypervisor import qmp
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import DomainInfo

SAFE_VERSION = (9, 0)


def unreadable(domain: Domain, info: DomainInfo) -> dict[str, str]:
    """Return the disks that cannot be backed up while the domain runs, with the reason. Raises HypervisorError."""
    threaded = [disk.target for disk in info.eligible_disks if disk.io_thread]
    if not threaded or not info.active:
        return {}
    found = qmp.execute(domain, "query-version")["qemu"]
    if (found["major"], found["minor"]) >= SAFE_VERSION:
        return {}
    detail = (
        f"the disk has an I/O thread, and QEMU {found['major']}.{found['minor']}.{found['micro']} would crash and end the "
        "guest; stop the server for its backups, take the disk's iothread away, or run it under QEMU 9.0 or later"
    )
    return dict.fromkeys(threaded, detail)
