"""Secrets at rest (S28): sealed with ChaCha20-Poly1305 under a master key that is not in the database.

    <state>/master.key (0600, 32 random bytes, hex)
        ├─ HKDF "seal"         ─► one key for all boxes;  box = nonce (12 random bytes) ‖ ciphertext ‖ tag
        ├─ HKDF "fingerprint"  ─► keyed hash shown in replies: equal for equal values of this installation, and no guessing offline
        └─ HKDF "mac/PURPOSE"  ─► what we sign for ourselves, such as confirmations

A box is bound to its table, row and column: copied elsewhere in the database it does not open. Random nonces under one key
are safe for far more boxes than there will ever be (2^32 at a chance of 2^-33 of a repeat).
"""

import hmac
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controller.db.models import Secret
from controller.db.statements import chunks, find_where, statement, value_lines
from controller.errors import CannotStart
from controller.files import write_atomic

KEY_BYTES = 32
NONCE_BYTES = 12
FINGERPRINT_DIGITS = 16


class BoxDamaged(Exception):
    """A sealed value does not open: another master key, or another row's box."""


class Vault:
    """Seals and opens what the database keeps. Any thread. Never prints a key."""

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._cipher = ChaCha20Poly1305(self._derive("seal"))
        self._fingerprint_key = self._derive("fingerprint")

    @classmethod
    def create(cls, path: Path) -> "Vault":
        """Make a master key file. Raises FileExistsError: a key that is overwritten takes all secrets with it."""
        if path.exists():
            raise FileExistsError(path)
        write_atomic(path, os.urandom(KEY_BYTES).hex().encode() + b"\n")
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> "Vault":
        """Read the master key file. Raises CannotStart if it is missing, open to others, or not a key."""
        try:
            mode = path.stat().st_mode
            master = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except OSError as error:
            raise CannotStart(f"cannot read the master key {path}: {error.strerror}") from error
        except ValueError:
            raise CannotStart(f"{path} does not hold a master key") from None
        if mode & 0o077:
            raise CannotStart(f"the master key {path} is open to others; chmod 600 it")
        if len(master) != KEY_BYTES:
            raise CannotStart(f"{path} does not hold a master key")
        return cls(master)

    def seal(self, table: str, column: str, row: str, value: bytes) -> bytes:
        """Return the box of a value for one place in the database."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, _place(table, column, row))

    def open(self, table: str, column: str, row: str, box: bytes) -> bytes:
        """Return what `seal` was given for the same place. Raises BoxDamaged."""
        try:
            return self._cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _place(table, column, row))
        except (InvalidTag, ValueError) as error:
            raise BoxDamaged(f"{table}.{column} of {row} does not open under this master key") from error

    def fingerprint(self, value: str) -> str:
        """Return 16 hexadecimal digits that tell values apart and give none away."""
        return hmac.digest(self._fingerprint_key, value.encode(), "sha256").hex()[:FINGERPRINT_DIGITS]

    def mac(self, purpose: str, data: bytes) -> bytes:
        """Return an HMAC-SHA256 that only we can make; purposes have nothing to do with one another."""
        return hmac.digest(self._derive(f"mac/{purpose}"), data, "sha256")

    def _derive(self, info: str) -> bytes:
        kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=f"backup-manager/vault/{info}".encode())
        return kdf.derive(self._master)


def _place(table: str, column: str, row: str) -> bytes:
    return f"{table}\0{column}\0{row}".encode()


# ---- the table of secrets -----------------------------------------------------------------------------------------------


def put(vault: Vault, table: str, row_id: str, name: str, value: str, now: datetime, *, keep: bool = True) -> None:
    """Set a row's secret, in place of an earlier one. Without `keep` only its fingerprint stays."""
    box, fingerprint = vault.seal(table, name, row_id, value.encode() if keep else b""), vault.fingerprint(value)
    Secret.insert(
        table_name=table, row_id=row_id, name=name, box=box, fingerprint=fingerprint, update_time=now
    ).on_conflict(
        conflict_target=[Secret.table_name, Secret.row_id, Secret.name],
        update={Secret.box: box, Secret.fingerprint: fingerprint, Secret.update_time: now},
    ).execute()


def open_all(vault: Vault, table: str, row_id: str) -> dict[str, str]:
    """Return a row's secrets by name. Raises BoxDamaged."""
    rows = find_where(Secret, "table_name = ? AND row_id = ?", table, row_id)
    return {row.name: vault.open(table, row.name, row_id, bytes(row.box)).decode() for row in rows}


def fingerprints(table: str, row_id: str) -> dict[str, str]:
    """Return the fingerprints of a row's secrets by name."""
    return fingerprints_of(table, [row_id]).get(row_id, {})


_FINGERPRINTS = """
    SELECT row_id, name, fingerprint FROM secret WHERE table_name = ? AND row_id IN ({}) ORDER BY row_id, name
"""


def fingerprints_of(table: str, row_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the fingerprints of rows' secrets, by row and name; a row without any is left out."""
    found: dict[str, dict[str, str]] = {}
    for chunk in chunks(row_ids):
        for row_id, name, fingerprint in statement(_FINGERPRINTS.format(value_lines(len(chunk), "?")), table, *chunk):
            found.setdefault(row_id, {})[name] = fingerprint
    return found


def set_time(table: str, row_id: str, name: str) -> datetime | None:
    """Return when a row's secret was set, None where there is none."""
    row = Secret.get_or_none(_one(table, row_id, name))
    return None if row is None else row.update_time


def remove(table: str, row_id: str, name: str) -> None:
    Secret.delete().where(_one(table, row_id, name)).execute()


def _one(table: str, row_id: str, name: str) -> object:
    return (Secret.table_name == table) & (Secret.row_id == row_id) & (Secret.name == name)


def remove_all(table: str, row_id: str) -> None:
    Secret.delete().where((Secret.table_name == table) & (Secret.row_id == row_id)).execute()
