"""A repository of two servers on a storage that a test lets lie, and every verb that reads it, run as an agent would.

servers/SERVER/…        FULL ◄── INCREMENTAL of disk vda, 8 KiB each        folder/storage   what lies there: altered by hand
servers/OTHER_SERVER/…  the same, of another content's frames               world.storage    how it is handed out: a FaultyStorage

No hypervisor: a restore goes to files. The jobs are those of `Rig`, in this process.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine.format import names
from engine.format.keys import ScryptCost, wrap_key
from engine.format.markers import FORMAT, Repository
from engine.ids import new_id
from engine.jobs import Outcome
from engine.spec import LocalConfig, RestoreJob, StorageSpec
from engine.storage.base import Storage
from engine.storage.local import LocalStorage
from tests.engine.format import samples
from tests.engine.format.samples import FULL, INCREMENTAL, OTHER_SERVER, SERVER
from tests.engine.rig import Rig
from tests.faults import FaultyStorage

IMAGES = {FULL: samples.first_image(), INCREMENTAL: samples.second_image()}
PASSPHRASE = "a passphrase of its owner"
CANARY = b"not the product's"


@dataclass
class World:
    """`lie` sets the faults of every storage that is opened from then on."""

    rig: Rig
    encrypted: bool
    lie: Callable[[FaultyStorage], object] = lambda _: None

    @property
    def root(self) -> Path:
        return self.rig.folder / "storage"

    def path(self, name: str) -> Path:
        return self.root / name

    def open(self, spec: StorageSpec, **_options: Any) -> Storage:
        """Stand in for `open_storage`."""
        assert spec.local is not None
        storage = FaultyStorage(LocalStorage(spec.local.path))
        self.lie(storage)
        return storage

    @contextmanager
    def honest(self) -> Iterator[Storage]:
        with LocalStorage(str(self.root)) as storage:
            yield storage

    def everything(self) -> dict[str, bytes]:
        """Return every file of the storage and of what lies around it."""
        files = (path for path in self.rig.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.rig.folder)): path.read_bytes() for path in files}

    # ---- the verbs ------------------------------------------------------------------------------------------------------

    def restore(self, backup_id: str = INCREMENTAL, *, manifest_digest: str = "") -> Outcome:
        """Restore to files: what is there afterwards is the image that was backed up, or nothing."""
        out = self.rig.folder / f"out-{new_id(datetime.now(UTC))}"
        out.mkdir()
        job = RestoreJob(
            SERVER, "", backup_id, target_folder=str(out), server_keys=self.rig.keys(SERVER),
            manifest_digest=manifest_digest,
        )  # fmt: skip
        outcome = self.rig.run(restore=job)
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        assert found == ({} if outcome.failure else {"vda.raw": IMAGES[backup_id]})
        return outcome

    def verify(self, *, with_key: bool = True) -> Outcome:
        return self.rig.verify(SERVER, with_key=with_key)

    def words(self, outcome: Outcome) -> str:
        """Return all that a job said, which holds no secret."""
        report = self.rig.report
        text = json.dumps([outcome.failure, outcome.result, outcome.warnings, report.infos, report.records])
        key = samples.STORAGE_KEY
        for secret in (PASSPHRASE, key.secret.hex(), samples.SERVER_KEY.secret.hex()):
            assert secret not in text
        return text


def make_world(folder: Path, monkeypatch: pytest.MonkeyPatch, *, encrypted: bool) -> World:
    """Write the repository and let jobs open it through the world."""
    root = folder / "storage"
    root.mkdir()
    objects = {names.REPOSITORY: Repository(samples.REPOSITORY, samples.INSTALLATION, FORMAT, samples.TIME).dump()}
    spec = StorageSpec(samples.REPOSITORY, samples.INSTALLATION, local=LocalConfig(str(root)))
    if encrypted:
        wrapped = wrap_key(samples.STORAGE_KEY, PASSPHRASE, samples.TIME, ScryptCost(n=2)).dump()
        objects[names.key_name(samples.KEY)] = wrapped
        spec = replace(spec, wrapped_keys={samples.KEY: wrapped.decode()}, key_id=samples.KEY)
    for server_id in (SERVER, OTHER_SERVER):
        key = samples.STORAGE_KEY.server_key(server_id) if encrypted else None
        seed = f"{server_id}/{encrypted}"
        objects |= samples.small_chain(samples.Writing(key=key, random=samples.Luck(seed), server_id=server_id))
    for name, data in objects.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for canary in (folder / "x", folder / "storage.txt", root / "foreign.txt"):
        canary.write_bytes(CANARY)
    world = World(Rig(folder, "", spec, samples.STORAGE_KEY if encrypted else None), encrypted)
    monkeypatch.setattr("engine.storage.open.open_storage", world.open)
    return world
