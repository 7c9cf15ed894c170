"""Leave a restore ticket on this host: after a look whether its backup can be restored from here, as a restore begins too.

Whoever runs the command may be in a hurry: what is wrong with the storage, the key or the chain is said now, not then.
"""

import os
import shlex
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path

from engine.errors import TargetError
from engine.rebuild import check_layers
from engine.restore import find_disks
from engine.results import TicketResult
from engine.spec import dump
from engine.surroundings import Surroundings, keys_of
from engine.ticket import Ticket


def leave_ticket(around: Surroundings) -> TicketResult:
    """Write the ticket that the job asks for, if its backup can be restored from here. Raises what a restore would."""
    job = around.job.ticket
    assert job is not None
    around.work.report.stage("prepare")
    storage = replace(around.operation.storage, wrapped_keys={}, key_id="")
    now = around.now().astimezone(UTC)
    ticket = Ticket(
        create_time=now.isoformat(timespec="seconds"),
        expire_time=(now + timedelta(seconds=job.lifetime_seconds)).isoformat(timespec="seconds"),
        storage=storage,
        server_id=job.server_id,
        backup_id=job.backup_id,
        disks=job.disks,
        manifest_digest=job.manifest_digest,
        server_keys=job.server_keys,
    )
    keys = keys_of(job.server_keys)
    with around.repository() as opened:
        _, chosen = find_disks(opened, ticket.job(()), keys)
        for manifest in chosen:
            check_layers(opened, manifest, keys.get(manifest.key_id), around.work)
    around.work.stop.check()
    _write_private(Path(job.path), dump(ticket).encode())
    command = f"bm-engine restore --ticket {shlex.quote(job.path)} --to /path/to/folder"
    return TicketResult(job.path, ticket.expire_time, command, [one.disk for one in chosen])


def _write_private(path: Path, data: bytes) -> None:
    """Put `data` under `path` with mode 0600, whole and durable or not at all, in a folder closed to others."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.parent.chmod(0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
