"""A storage's key, wrapped by one or several passphrases: the objects below `keys/`, and N12's copies in every backup.

    passphrase ──scrypt──► wrapping key ──opens a slot──► storage key

Each slot holds the same key under another passphrase. What scrypt may cost is bounded when read, so that a forged object
cannot take all memory. Source: FORMAT.md, "The key object".
"""

import os
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Literal

from engine.errors import InvalidSpec, WrongKey
from engine.format import documents, names
from engine.format.crypto import (
    INFO,
    KEY_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    SEAL_BYTES,
    Aead,
    OpenFailed,
    Random,
    StorageKey,
)
from engine.memory import give_back_libraries
from engine.units import MIB

KIND = "key"
SLOTS_MAX = 16
_SCRYPT_MEMORY_MAX = 256 * MIB


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """What guessing a passphrase costs: 128·n·r bytes of memory; the default takes 32 MiB and about 0.1 s."""

    n: int = 1 << 15
    r: int = 8
    p: int = 1

    @property
    def valid(self) -> bool:
        powers = 2 <= self.n <= 1 << 20 and self.n & (self.n - 1) == 0
        return powers and 1 <= self.r <= 32 and 1 <= self.p <= 16 and 128 * self.n * self.r <= _SCRYPT_MEMORY_MAX


@dataclass(frozen=True, slots=True)
class Slot:
    """The storage key under one passphrase; `salt` and `box` are hex."""

    kdf: Literal["scrypt"]
    n: int
    r: int
    p: int
    salt: str
    box: str = field(repr=False)

    @property
    def cost(self) -> ScryptCost:
        return ScryptCost(self.n, self.r, self.p)


@dataclass(frozen=True, slots=True)
class KeyObject:
    """A storage key, closed. `dump` gives the object's bytes, ASCII text."""

    key_id: str
    create_time: str
    slots: tuple[Slot, ...]

    def dump(self) -> bytes:
        return documents.dump_plain(KIND, self)

    @classmethod
    def load(cls, data: bytes, name: str) -> "KeyObject":
        """Return the key object in `data`; if `name` is a name below `keys/`, it must be this key's.

        Raises ManifestCorrupt, ManifestUnsupported.
        """
        value = documents.load_plain(cls, KIND, data, name)
        documents.check_ids(name, key_id=value.key_id)
        place = names.parse(name)
        documents.expect(
            place is None or place.kind != "key" or place.key_id == value.key_id, name, f"is really key {value.key_id}"
        )
        documents.expect(documents.is_time(value.create_time), name, "create_time is not a time")
        documents.expect(1 <= len(value.slots) <= SLOTS_MAX, name, f"has {len(value.slots)} slots")
        for slot in value.slots:
            sized = documents.is_hex(slot.salt, SALT_BYTES) and documents.is_hex(slot.box, KEY_BYTES + SEAL_BYTES)
            documents.expect(sized and slot.cost.valid, name, "a slot is beyond the format's limits")
        return value


def wrap_key(
    key: StorageKey, passphrase: str, create_time: str, cost: ScryptCost = ScryptCost(), random: Random = os.urandom
) -> KeyObject:
    """Return `key` wrapped by `passphrase`. Takes the time and memory of `cost`. Raises InvalidSpec for an empty passphrase."""
    return KeyObject(key.key_id, create_time, (_seal(key, passphrase, cost, random),))


def unwrap_key(wrapped: KeyObject, passphrase: str) -> StorageKey:
    """Return the key that `passphrase` opens. Takes the cost of every slot it does not open. Raises WrongKey."""
    for slot in wrapped.slots:
        wrapping = Aead(_wrapping_key(passphrase, bytes.fromhex(slot.salt), slot.cost))
        try:
            return StorageKey(
                wrapped.key_id, wrapping.open(None, bytes.fromhex(slot.box), _context(wrapped.key_id, slot.cost))
            )
        except OpenFailed:
            continue
    raise WrongKey(key_id=wrapped.key_id)


def add_passphrase(
    wrapped: KeyObject,
    passphrase: str,
    added: str,
    create_time: str,
    cost: ScryptCost = ScryptCost(),
    random: Random = os.urandom,
) -> KeyObject:
    """Return the next revision of `wrapped`, which `added` opens too. Raises WrongKey if `passphrase` opens no slot."""
    _check_room(wrapped)
    return add_slot(wrapped, unwrap_key(wrapped, passphrase), added, create_time, cost, random)


def add_slot(
    wrapped: KeyObject,
    key: StorageKey,
    added: str,
    create_time: str,
    cost: ScryptCost = ScryptCost(),
    random: Random = os.urandom,
) -> KeyObject:
    """Return the next revision of `wrapped`, which `added` opens too, by who has the open `key` itself. Raises InvalidSpec."""
    _check_room(wrapped)
    if key.key_id != wrapped.key_id:
        raise InvalidSpec(field="key", problem=f"is {key.key_id}, and not {wrapped.key_id}")
    return replace(wrapped, create_time=create_time, slots=(*wrapped.slots, _seal(key, added, cost, random)))


def _check_room(wrapped: KeyObject) -> None:
    if len(wrapped.slots) >= SLOTS_MAX:
        raise InvalidSpec(field="passphrase", problem=f"key {wrapped.key_id} has {SLOTS_MAX} passphrases already")


def _seal(key: StorageKey, passphrase: str, cost: ScryptCost, random: Random) -> Slot:
    if not cost.valid:
        raise InvalidSpec(field="kdf", problem=f"{cost} is beyond the format's limits")
    salt, nonce = random(SALT_BYTES), random(NONCE_BYTES)
    box = Aead(_wrapping_key(passphrase, salt, cost)).seal(nonce, key.secret, _context(key.key_id, cost))
    return Slot("scrypt", cost.n, cost.r, cost.p, salt.hex(), box.hex())


def _wrapping_key(passphrase: str, salt: bytes, cost: ScryptCost) -> bytes:
    if not passphrase:
        raise InvalidSpec(field="passphrase", problem="is empty")
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    give_back_libraries()  # the derivation's own memory is more than anything else takes before data flows
    secret = unicodedata.normalize("NFC", passphrase).encode()
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(secret)


def _context(key_id: str, cost: ScryptCost) -> bytes:
    return f"{INFO}/key/{key_id}/scrypt/{cost.n}/{cost.r}/{cost.p}".encode()
