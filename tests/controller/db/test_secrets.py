"""Secrets at rest: bound to their place, useless without the master key, and told apart without being told."""

from pathlib import Path

import pytest

from controller.db import secrets
from controller.db.secrets import BoxDamaged, Vault
from controller.errors import CannotStart
from tests.clock import START
from tests.controller.world import World

pytestmark = pytest.mark.feature("S28")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.create(tmp_path / "master.key")


def test_a_box_opens_in_its_place_only(vault: Vault) -> None:
    box = vault.seal("storage", "sftp_private_key", "s1", b"PEM")

    assert b"PEM" not in box
    assert vault.open("storage", "sftp_private_key", "s1", box) == b"PEM"
    for place in (
        ("server", "sftp_private_key", "s1"),
        ("storage", "other", "s1"),
        ("storage", "sftp_private_key", "s2"),
    ):
        with pytest.raises(BoxDamaged):
            vault.open(*place, box)


def test_every_flipped_byte_and_every_cut_is_noticed(vault: Vault) -> None:
    box = vault.seal("t", "c", "r", b"secret")

    for position in range(len(box)):
        damaged = bytearray(box)
        damaged[position] ^= 1
        with pytest.raises(BoxDamaged):
            vault.open("t", "c", "r", bytes(damaged))
        with pytest.raises(BoxDamaged):
            vault.open("t", "c", "r", box[:position])


def test_equal_values_have_unlike_boxes_and_like_fingerprints(vault: Vault, tmp_path: Path) -> None:
    other = Vault.create(tmp_path / "other.key")

    assert vault.seal("t", "c", "r", b"x") != vault.seal("t", "c", "r", b"x")
    assert vault.fingerprint("x") == vault.fingerprint("x") != vault.fingerprint("y")
    assert len(vault.fingerprint("x")) == 16
    assert vault.fingerprint("x") != other.fingerprint("x")
    assert vault.mac("a", b"x") != vault.mac("b", b"x")


def test_another_master_key_opens_nothing(vault: Vault, tmp_path: Path) -> None:
    box = vault.seal("t", "c", "r", b"secret")

    assert Vault.load(tmp_path / "master.key").open("t", "c", "r", box) == b"secret"
    with pytest.raises(BoxDamaged):
        Vault.create(tmp_path / "other.key").open("t", "c", "r", box)


def test_the_key_file_is_private_and_never_overwritten(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "master.key"

    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Vault.create(path)
    path.chmod(0o640)
    with pytest.raises(CannotStart, match="chmod"):
        Vault.load(path)


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "00" * 33])
def test_a_file_that_is_no_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "master.key"
    path.write_text(content)
    path.chmod(0o600)

    with pytest.raises(CannotStart, match="does not hold"):
        Vault.load(path)
    with pytest.raises(CannotStart, match="cannot read"):
        Vault.load(tmp_path / "none.key")


def test_the_table_keeps_boxes_and_fingerprints(world: World) -> None:
    vault = world.vault
    for value in ("first", "second"):
        world.run(secrets.put, vault, "storage", "s1", "key", value, START)
    world.run(secrets.put, vault, "storage", "s1", "passphrase", "wraps a key", START, keep=False)

    assert world.run(secrets.open_all, vault, "storage", "s1") == {"key": "second", "passphrase": ""}
    assert world.run(secrets.fingerprints, "storage", "s1") == {
        "key": vault.fingerprint("second"),
        "passphrase": vault.fingerprint("wraps a key"),
    }
    world.run(secrets.remove_all, "storage", "s1")
    assert world.run(secrets.open_all, vault, "storage", "s1") == {}
