"""Settings of a local folder (S3)."""

from clients.gen.backupmanager.v1 import storage_pb2
from controller.services import check
from controller.services.storage_checks.fields import expect


def config(given: storage_pb2.LocalConfig) -> storage_pb2.LocalConfig:
    path = check.path("local.path", given.path)
    expect(path != "/", "local.path", "must be a folder below /")
    return storage_pb2.LocalConfig(path=path)
