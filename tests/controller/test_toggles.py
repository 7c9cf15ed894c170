"""The two switches of a storage, per verb and per type: what a read-only storage still does, and that a disabled one does nothing.

Purges, prunes, batches and health checks that nobody asks for are passed over instead of refused: test_purges.py, test_pruning.py,
cycle/test_batches.py, test_health.py.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from controller import previews
from controller.db import models
from controller.errors import StorageDisabled, StorageReadOnly
from controller.order_types import BackupOrder as Backup
from controller.order_types import (
    DeleteOrder,
    HealthOrder,
    Order,
    ProbeOrder,
    ReindexOrder,
    RemovalOrder,
    RestoreOrder,
    TicketOrder,
    VerifyOrder,
)
from controller.order_types import TestOrder as StorageTest
from controller.storages import Storage
from tests.controller.world import Agent, World

TYPES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "sftp": ({"host": "nas.example", "port": 22, "username": "bm", "path": "/srv"}, {"sftp_private_key": "PEM"}),
    "s3": ({"bucket": "vm", "region": "r", "access_key": "AK"}, {"s3_secret_key": "hush"}),
    "ftp": ({"host": "ftp.example", "port": 21, "username": "bm", "path": "/vm"}, {"ftp_password": "hush"}),
    "rclone": ({"remote": "box", "path": "vm"}, {}),
    "local": ({"path": "/mnt/nas", "allow_local": True}, {}),
}
READING = {"restore", "verify", "ticket", "reindex", "health", "probe"}
WRITING = {"backup", "delete", "prune", "purge", "test"}


def orders_of(
    world: World, agent: Agent, server_id: str, storage: Storage, kept: str
) -> dict[str, Callable[[], Order]]:
    """Return how each verb is asked for; nothing is looked up before it is asked."""
    host, storage_id = agent.hypervisor_id, storage.storage_id

    def removal(verb: str) -> Order:
        return RemovalOrder(verb, server_id, storage_id, (kept,), host)

    def delete() -> Order:
        return DeleteOrder((kept,), world.run(previews.preview_delete, (kept,), world.context()).confirmation)

    def restore() -> Order:
        preview = world.run(previews.preview_restore, kept, "", (), "/var/tmp", world.context())
        return RestoreOrder(kept, target_folder="/var/tmp", confirmation=preview.confirmation)

    return {
        "backup": lambda: Backup(server_id, storage_id),
        "restore": restore,
        "verify": lambda: VerifyOrder(kept),
        "ticket": lambda: TicketOrder(kept, host, 3600),
        "delete": delete,
        "prune": lambda: removal("prune"),
        "purge": lambda: removal("purge"),
        "reindex": lambda: ReindexOrder(storage_id, host),
        "test": lambda: StorageTest(storage_id, host),
        "health": lambda: HealthOrder(storage_id, host),
        "probe": lambda: ProbeOrder(storage_id, host, storage.type, {**storage.config, "path": "/elsewhere"}),
    }


@pytest.mark.feature("S20", "S21", "S22", "H3")
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_what_a_switched_storage_does_of_each_verb(world: World, kind: str) -> None:
    agent = world.enroll("h1")
    server = world.server(agent, "web")
    config, secrets = TYPES[kind]
    storage = world.storage(type=kind, config=config, secrets=secrets)
    kept = agent.back_up(server, storage, "c1")
    orders = orders_of(world, agent, server.server_id, storage, kept)
    assert set(orders) == READING | WRITING
    before = world.run(lambda: models.Job.select().count())

    def refused(verbs: Iterable[str] = orders) -> dict[str, str]:
        found = {}
        for verb in verbs:
            try:
                agent.finish(world.start(orders[verb]()), state="cancelled")
            except (StorageReadOnly, StorageDisabled) as error:
                found[verb] = error.reason
        return found

    world.change_storage(storage, read_only=True)
    assert refused() == dict.fromkeys(WRITING, "STORAGE_READ_ONLY")
    assert world.run(lambda: models.Job.select().count()) == before + len(READING), "what is refused leaves no job"
    for read_only in (True, False):
        world.change_storage(storage, enabled=False, read_only=read_only)
        assert refused() == dict.fromkeys(READING | WRITING, "STORAGE_DISABLED")
    world.change_storage(storage, enabled=True)
    assert refused([*READING, "backup", "delete", "test"]) == {}, "both off again"
