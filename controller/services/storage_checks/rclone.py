"""Settings of a remote of rclone (S14). What the remote is, only the hypervisors know: its type is looked at by the test (S16 to S18)."""

import re

from clients.gen.backupmanager.v1 import storage_pb2
from controller.services import check
from controller.services.storage_checks import fields
from controller.services.storage_checks.fields import expect

S3_CONCURRENCY_DEFAULT, S3_CONCURRENCY_MAX = 4, 64
# rclone's own rule for names in its configuration, in ASCII. Nothing else goes: ':' and ',' would make a remote of options
# up on the way, that the hypervisor's configuration knows nothing of.
_REMOTE = re.compile(r"[A-Za-z0-9_.+@]([A-Za-z0-9_.+@ -]{0,126}[A-Za-z0-9_.+@-])?")


def config(given: storage_pb2.RcloneConfig) -> storage_pb2.RcloneConfig:
    expect(
        _REMOTE.fullmatch(given.remote) is not None,
        "rclone.remote",
        "must be the name of a remote in rclone's configuration, without a colon",
    )
    concurrency = given.s3_concurrency or S3_CONCURRENCY_DEFAULT
    return storage_pb2.RcloneConfig(
        remote=given.remote,
        path=fields.folder("rclone.path", given.path, rooted=True),
        s3_concurrency=check.number("rclone.s3_concurrency", concurrency, 1, S3_CONCURRENCY_MAX),
        force=given.force,
        bind_address=fields.bind_address("rclone.bind_address", given.bind_address),
    )
