"""Key objects: passphrases open them, nothing else does, and a forged one costs nothing."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FormatError, InvalidSpec, ManifestCorrupt, ManifestUnsupported, WrongKey
from engine.format import documents, keys, names
from engine.format.keys import KeyObject, ScryptCost
from tests.engine.format.samples import KEY, OTHER_SERVER, RELAXED, STORAGE_KEY, TIME, Luck

CHEAP = ScryptCost(2, 1, 1)
NAME = names.key_name(KEY)


def wrapped(passphrase: str = "secret") -> KeyObject:
    return keys.wrap_key(STORAGE_KEY, passphrase, TIME, CHEAP)


@pytest.mark.feature("S26", "N12")
@settings(RELAXED, max_examples=30)
@given(passphrase=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_a_passphrase_opens_what_it_wrapped(passphrase):
    stored = KeyObject.load(keys.wrap_key(STORAGE_KEY, passphrase, TIME, CHEAP).dump(), NAME)

    assert keys.unwrap_key(stored, passphrase) == STORAGE_KEY
    with pytest.raises(WrongKey):
        keys.unwrap_key(stored, passphrase + "x")


@pytest.mark.feature("S26")
def test_the_default_cost_is_real_and_opens():
    begin = time.process_time()
    stored = keys.wrap_key(STORAGE_KEY, "secret", TIME)

    assert (stored.slots[0].n, stored.slots[0].r, stored.slots[0].p) == (32768, 8, 1)
    assert time.process_time() - begin > 0.01, "guessing must cost something"
    assert keys.unwrap_key(stored, "secret") == STORAGE_KEY


@pytest.mark.feature("S25")
def test_an_added_passphrase_opens_the_same_key():
    second = keys.add_passphrase(wrapped("first"), "first", "second", TIME, CHEAP)

    assert keys.unwrap_key(second, "first") == keys.unwrap_key(second, "second") == STORAGE_KEY
    with pytest.raises(WrongKey):
        keys.add_passphrase(second, "third", "fourth", TIME, CHEAP)
    for _ in range(14):
        second = keys.add_passphrase(second, "first", "again", TIME, CHEAP)
    with pytest.raises(InvalidSpec):
        keys.add_passphrase(second, "first", "one too many", TIME, CHEAP)
    assert KeyObject.load(second.dump(), names.key_name(KEY, 1)) == second


@pytest.mark.feature("S26")
def test_a_passphrase_is_the_same_however_it_is_typed():
    composed, decomposed = "caf\u00e9", "cafe\u0301"

    assert keys.unwrap_key(wrapped(composed), decomposed) == STORAGE_KEY


def test_an_empty_passphrase_is_refused():
    with pytest.raises(InvalidSpec):
        wrapped("")


def test_two_wrappings_share_nothing():
    first, second = wrapped().slots[0], wrapped().slots[0]

    assert first.salt != second.salt
    assert first.box != second.box


@pytest.mark.parametrize(
    "cost", [(1, 1, 1), (3, 1, 1), (1 << 21, 1, 1), (1 << 20, 8, 1), (16, 33, 1), (16, 1, 17), (0, 1, 1), (16, 0, 1)]
)
def test_a_forged_cost_is_refused_before_it_is_paid(cost):
    n, r, p = cost
    with pytest.raises(InvalidSpec):
        keys.wrap_key(STORAGE_KEY, "secret", TIME, ScryptCost(n, r, p))
    with pytest.raises(ManifestCorrupt):
        KeyObject.load(forged(slot={"n": n, "r": r, "p": p}), NAME)


def forged(slot: dict[str, object] | None = None, **fields: object) -> bytes:
    """Return a key object with some values replaced and a hash that fits."""
    values = json.loads(wrapped().dump().splitlines()[0])
    values["slots"][0] |= slot or {}
    return documents.wrap(documents.to_json({**values, **fields}))


@pytest.mark.parametrize(
    "data",
    [
        forged(slot={"kdf": "pbkdf2"}),
        forged(slot={"salt": "00"}),
        forged(slot={"box": "zz" * 60}),
        forged(slot={"box": "00" * 59}),
        forged(slot={"extra": 1}),
        forged(slots=[]),
        forged(slots=json.loads(wrapped().dump().splitlines()[0])["slots"] * 17),
        forged(key_id="x"),
        forged(create_time="yesterday"),
        forged(version="1"),
        forged(version=True),
        forged(kind="disk"),
    ],
)
def test_a_malformed_object_is_refused(data):
    with pytest.raises(ManifestCorrupt):
        KeyObject.load(data, NAME)


def test_a_later_version_is_told_apart():
    with pytest.raises(ManifestUnsupported):
        KeyObject.load(forged(version=2), NAME)


def test_a_slot_of_another_key_does_not_open():
    moved = KeyObject.load(forged(key_id=OTHER_SERVER), "a copy somewhere")

    with pytest.raises(WrongKey):
        keys.unwrap_key(moved, "secret")
    with pytest.raises(ManifestCorrupt):
        KeyObject.load(forged(key_id=OTHER_SERVER), NAME)


def test_every_damaged_byte_and_every_cut_is_known_as_such_and_not_as_a_wrong_passphrase():
    data = keys.wrap_key(STORAGE_KEY, "secret", TIME, CHEAP, Luck("keys")).dump()

    for position in range(len(data)):
        with pytest.raises(FormatError):
            KeyObject.load(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :], NAME)
        with pytest.raises(FormatError):
            KeyObject.load(data[:position], NAME)


@pytest.mark.feature("S28")
def test_no_repr_shows_a_box():
    assert wrapped().slots[0].box[:16] not in repr(wrapped())
