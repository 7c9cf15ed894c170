"""No key ever meets a nonce twice: every seal of a whole backup passes one hook, which remembers them all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.format import crypto, keys
from engine.format.manifest import Layer
from tests.engine.format import samples
from tests.engine.format.samples import FULL, INCREMENTAL, SERVER_KEY, STORAGE_KEY, TIME, Objects, Writing


@pytest.fixture
def seen(monkeypatch):
    """Every (key, nonce) that is sealed with during the test."""
    pairs: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(crypto, "seal_observer", lambda key, nonce: pairs.append((key, nonce)))
    return pairs


def back_up(backup_id: str, segment_plain_bytes: int) -> Objects:
    """Write a backup of three disks, several segments each, with its manifests, from three threads."""

    def writing() -> Writing:
        """Return a way of writing for one thread: two of them in one compressor make frames that cannot be read."""
        return Writing(SERVER_KEY, random=os.urandom, segment_plain_bytes=segment_plain_bytes)

    objects, image = Objects(), samples.first_image()

    def disk(name: str):
        how = writing()
        segments = samples.write_layer(objects, how, backup_id, name, image, samples.FULL_ITEMS)
        value = samples.disk_manifest(how, backup_id, name, len(image), (Layer(backup_id, segments),))
        return name, (value, samples.put_manifest(objects, how, value))

    with ThreadPoolExecutor(3) as pool:
        disks = dict(pool.map(disk, ("vda", "vdb", "vdc")))
    how = writing()
    samples.put_manifest(objects, how, samples.server_manifest(how, backup_id, disks))
    return objects


@pytest.mark.feature("T14")
def test_no_key_and_nonce_repeat_across_backups_disks_segments_retries_and_manifests(seen):
    wrapped = keys.wrap_key(STORAGE_KEY, "a passphrase", TIME, keys.ScryptCost(2, 1, 1))
    keys.add_passphrase(wrapped, "a passphrase", "a passphrase", TIME, keys.ScryptCost(2, 1, 1))
    for backup_id, segment_bytes in (
        (FULL, 1500),
        (INCREMENTAL, 3000),
        (FULL, 1500),
        (FULL, 1500),
    ):  # the last two retry
        objects = back_up(backup_id, segment_bytes)
        assert samples.restore(objects, backup_id, "vdb", SERVER_KEY) == samples.first_image()

    slots, segments, frames, manifests = 2, 3 * (3 + 2 + 3 + 3), 4 * 3 * 5, 4 * (3 + 1)
    assert len(seen) == slots + segments + frames + manifests
    assert len(set(seen)) == len(seen)


def test_nothing_in_the_format_seals_past_the_hook():
    users = [path.name for path in Path(crypto.__file__).parent.glob("*.py") if "ChaCha20Poly1305(" in path.read_text()]

    assert users == ["crypto.py"]
    assert Path(crypto.__file__).read_text().count(".encrypt") == 1


@pytest.mark.feature("T14")
def test_the_hook_sees_a_repetition(seen):
    luck = lambda length: bytes(length)
    for _ in range(2):
        samples.write_layer({}, Writing(SERVER_KEY, random=luck), FULL, "vda", bytes(8192), samples.FULL_ITEMS)

    assert len(set(seen)) == len(seen) // 2
