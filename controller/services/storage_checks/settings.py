"""Settings that storages of all types have: compression, limits, and what opens their key (S26, S27, T13)."""

from clients.gen.backupmanager.v1 import storage_pb2
from controller.services import check, settings_check
from controller.services.storage_checks.fields import expect

LEVEL_DEFAULT, LEVEL_MAX = 3, 19  # zstd's; above 19 it takes memory that no hypervisor has to spare
THREADS_MAX = 64
PASSPHRASE_CHARACTERS_MIN, PASSPHRASE_CHARACTERS_MAX = 8, 1024


def compression(value: storage_pb2.Compression | None) -> storage_pb2.Compression:
    """Return compression with its defaults in place; None means on."""
    if value is None:
        value = storage_pb2.Compression(enabled=True)
    return storage_pb2.Compression(
        enabled=value.enabled,
        level=check.number("compression.level", value.level or LEVEL_DEFAULT, 1, LEVEL_MAX),
        threads=check.number("compression.threads", value.threads or 1, 1, THREADS_MAX),
    )


def limits(value: storage_pb2.StorageLimits) -> storage_pb2.StorageLimits:
    """Return limits as they are: what is not set stays so, that a schedule and the defaults can tell it from a wish."""
    check.number("limits.worker_threads", value.worker_threads, 0, settings_check.RANGES["worker_threads"][1])
    settings_check.rate("limits.bandwidth_bytes_per_second", value.bandwidth_bytes_per_second)
    settings_check.rate("limits.read_bytes_per_second", value.read_bytes_per_second)
    return value


def passphrase(field: str, text: str) -> None:
    fits = PASSPHRASE_CHARACTERS_MIN <= len(text) <= PASSPHRASE_CHARACTERS_MAX
    expect(fits, field, f"must be {PASSPHRASE_CHARACTERS_MIN} to {PASSPHRASE_CHARACTERS_MAX} characters")
