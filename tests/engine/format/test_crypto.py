"""Keys and boxes: derivations are separate, boxes open only as they were sealed, and nothing prints a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSpec
from engine.format.crypto import KEY_BYTES, SEAL_BYTES, Aead, OpenFailed, ServerKey, StorageKey, nonce_of
from tests.engine.format.samples import KEY, OTHER_SERVER, RELAXED, SERVER, STORAGE_KEY

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)


@pytest.mark.feature("T14")
@RELAXED
@given(key=keys, plain=st.binary(max_size=300), context=st.binary(max_size=50), number=st.integers(0, 2**64 - 1))
def test_opening_a_box_gives_what_was_sealed(key, plain, context, number):
    box = Aead(key).seal(nonce_of(number), plain, context)

    assert len(box) == len(plain) + SEAL_BYTES == len(plain) + 28
    assert Aead(key).open(nonce_of(number), box, context) == plain
    assert Aead(key).open(None, box, context) == plain


@pytest.mark.feature("T14")
def test_a_box_opens_only_as_it_was_sealed():
    aead = Aead(bytes(32))
    box = aead.seal(nonce_of(7), b"plaintext", b"context")

    for nonce, context, data in (
        (nonce_of(8), b"context", box),
        (nonce_of(7), b"another", box),
        (nonce_of(7), b"context", nonce_of(8) + box[12:]),
        (nonce_of(7), b"context", b""),
    ):
        with pytest.raises(OpenFailed):
            aead.open(nonce, data, context)
    for position in range(len(box)):
        with pytest.raises(OpenFailed):
            aead.open(None, box[:position] + bytes([box[position] ^ 1]) + box[position + 1 :], b"context")
        with pytest.raises(OpenFailed):
            aead.open(None, box[:position], b"context")
    with pytest.raises(OpenFailed):
        Aead(b"\1" * 32).open(None, box, b"context")


def test_every_derived_key_is_another():
    server, other = STORAGE_KEY.server_key(SERVER), STORAGE_KEY.server_key(OTHER_SERVER)
    one, two = bytes(32), b"\1" * 32
    derived = [
        key.derive(salt, use)
        for key in (server, other)
        for salt in (one, two)
        for use in ("frames", "index", "manifest", "mac")
    ]
    everything = [*derived, server.secret, other.secret, STORAGE_KEY.secret]

    assert len(set(everything)) == len(everything)
    assert server.check != other.check
    assert server == StorageKey(KEY, STORAGE_KEY.secret).server_key(SERVER)


def test_nonces_are_numbers():
    assert nonce_of(0) == bytes(12)
    assert nonce_of(0x0102) == b"\x02\x01" + bytes(10)


@pytest.mark.feature("S28")
def test_no_repr_shows_a_key():
    secret = bytes(range(100, 132))
    for value in (StorageKey(KEY, secret), ServerKey(KEY, secret), Aead(secret), [ServerKey(KEY, secret)]):
        for form in (repr(secret)[2:20], secret.hex()[:16], "defghij"):
            assert form not in repr(value)
            assert form not in f"{value}"


def test_a_key_of_another_length_or_id_is_refused():
    with pytest.raises(InvalidSpec):
        StorageKey(KEY, bytes(31))
    with pytest.raises(InvalidSpec):
        ServerKey("key", bytes(32))
    with pytest.raises(InvalidSpec):
        STORAGE_KEY.server_key("web-1")


def test_generated_keys_differ():
    assert StorageKey.generate(KEY).secret != StorageKey.generate(KEY).secret
