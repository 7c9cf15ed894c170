"""Looking at a storage without writing to it: is there a way in, is what lies there ours, how much room is left (H1, H4).

    connect ──► whose repository? ──► room
       │            └ none, and it was never used: all right, the first use makes it
       └ no folder: as no repository

It gives up after seconds: somebody looks again before long.
"""

import time

from engine.errors import ObjectNotFound, RepositoryMissing
from engine.repository import check_repository
from engine.results import HealthResult
from engine.spec import StorageSpec
from engine.storage.base import Storage
from engine.storage.open import open_storage
from engine.work import Stop


def look(spec: StorageSpec, stop: Stop) -> HealthResult:
    """Return what a storage says of itself. Raises what stands in the way, and RepositoryMissing where one was before."""
    begun = time.monotonic()
    try:
        with (
            stop.obtain(lambda: open_storage(spec, brief=True, make=False), Storage.close) as storage,
            stop.waking(storage.interrupt),
        ):
            initialized = _initialized(storage, spec)
            latency = time.monotonic() - begun
            room = storage.usage()
            return HealthResult(latency, initialized, room.total_bytes if room else 0, room.free_bytes if room else 0)
    except ObjectNotFound as error:
        if spec.initialized:
            raise RepositoryMissing(storage=error.facts["storage"]) from error
        return HealthResult(time.monotonic() - begun, initialized=False)


def _initialized(storage: Storage, spec: StorageSpec) -> bool:
    try:
        check_repository(storage, spec)
    except RepositoryMissing:
        if spec.initialized:
            raise
        return False
    return True
