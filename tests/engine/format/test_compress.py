"""Zstandard within the format's rules."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSpec
from engine.extents import FRAME_BYTES_MAX
from engine.format import libzstd
from engine.format.compress import DecompressFailed, Decompressor, ZstdCompressor
from engine.units import KIB, MIB
from tests.engine.format.samples import RELAXED, noise, text

COMPRESSORS = {level: ZstdCompressor(level) for level in (1, 3)}
DECOMPRESSOR = Decompressor()


@pytest.mark.feature("T13")
@RELAXED
@given(
    data=st.binary(max_size=2000) | st.builds(text, st.integers(0, 5000), st.text(max_size=5)),
    level=st.sampled_from([1, 3]),
)
def test_decompressing_gives_what_was_compressed(data, level):
    packed = COMPRESSORS[level].compress(data)

    assert DECOMPRESSOR.decompress(packed, len(data)) == data


@pytest.mark.feature("T13", "T16")
@pytest.mark.parametrize("level", [1, 3, 9, 19])
def test_a_whole_frame_keeps_the_formats_rules(level):
    data = text(FRAME_BYTES_MAX - 1000, "whole") + noise(1000, "end")

    packed = ZstdCompressor(level).compress(memoryview(data))

    declared = zstandard.get_frame_parameters(packed)
    assert (declared.content_size, declared.has_checksum, declared.dict_id) == (len(data), True, 0)
    assert Decompressor().decompress(packed, len(data)) == data


@pytest.fixture(params=["the host's libzstd", "the package's"])
def compressor(request, monkeypatch):
    if request.param == "the package's":
        monkeypatch.setattr(libzstd, "load", lambda: None)
    else:
        assert libzstd.load() is not None, "install libzstd1"
    return ZstdCompressor


@pytest.mark.feature("T13", "T16")
@pytest.mark.parametrize("level", [1, 3, 9, 19])
@pytest.mark.parametrize("length", [FRAME_BYTES_MAX, MIB, 64 * KIB, 300])
def test_what_is_compressed_into_a_buffer_keeps_the_formats_rules(compressor, level, length):
    data = bytearray(text(length // 2, "half") + noise(length - length // 2, "half"))
    target = memoryview(bytearray(length + 10))

    count = compressor(level).compress_into(memoryview(data), target[:-10])

    packed = bytes(target[:count])
    declared = zstandard.get_frame_parameters(packed)
    assert (declared.content_size, declared.has_checksum, declared.dict_id) == (length, True, 0)
    assert Decompressor().decompress(packed, length) == data
    assert bytes(target[-10:]) == bytes(10)


@pytest.mark.feature("T13")
def test_what_does_not_fit_into_a_buffer_is_told_and_the_next_frame_is_whole(compressor):
    one, rejected = compressor(), bytearray(noise(100_000, "x"))
    target = memoryview(bytearray(100_000))

    assert one.compress_into(memoryview(rejected), target[:99_999]) == 0
    assert one.compress_into(memoryview(rejected), target[:0]) == 0

    data = bytearray(text(90_000, "x"))
    count = one.compress_into(memoryview(data), target)
    assert 0 < count < len(data)
    assert Decompressor().decompress(bytes(target[:count]), len(data)) == data


def test_a_host_without_the_library_is_noticed(monkeypatch):
    monkeypatch.setattr(libzstd, "_LIBRARY", "libnothing-of-this-name.so.1")

    assert libzstd.load.__wrapped__() is None


def test_a_parameter_that_the_library_refuses_is_an_error():
    library = libzstd.load()
    assert library is not None

    with pytest.raises(ValueError, match="does not take"):
        libzstd.Context(library, {libzstd.HASH_LOG: 10_000})


def into_buffer(data: bytes, length: int) -> bytes:
    target = bytearray(length)
    DECOMPRESSOR.decompress_into(data, memoryview(target))
    return bytes(target)


@pytest.fixture(params=[DECOMPRESSOR.decompress, into_buffer], ids=["package", "into a buffer"])
def unpack(request):
    """Both ways of decompressing obey the same rules."""
    return request.param


def test_every_damaged_byte_and_every_cut_is_an_error_or_harmless(unpack):
    data = text(700, "x") + noise(60, "y")
    packed = ZstdCompressor().compress(data)

    for position in range(len(packed)):
        with pytest.raises(DecompressFailed):
            unpack(packed[:position], len(data))
        try:
            found = unpack(packed[:position] + bytes([packed[position] ^ 1]) + packed[position + 1 :], len(data))
        except DecompressFailed:
            continue
        assert found == data


@pytest.mark.parametrize(
    "extra",
    [
        b"x",
        b"\0" * 20,
        b"\x50\x2a\x4d\x18\x03\0\0\0abc",
        ZstdCompressor().compress(b""),
        ZstdCompressor().compress(b"more"),
    ],
)
def test_bytes_after_the_frame_are_an_error(unpack, extra):
    packed = ZstdCompressor().compress(b"content " * 20)

    with pytest.raises(DecompressFailed):
        unpack(packed + extra, 160)


@pytest.mark.parametrize("length", [0, 159, 161, FRAME_BYTES_MAX])
def test_another_length_is_an_error(unpack, length):
    with pytest.raises(DecompressFailed):
        unpack(ZstdCompressor().compress(b"content " * 20), length)


def test_what_the_format_does_not_allow_is_an_error(unpack):
    data = b"content " * 20
    for context in (
        zstandard.ZstdCompressor(write_checksum=False),
        zstandard.ZstdCompressor(write_checksum=True, write_content_size=False),
        zstandard.ZstdCompressor(
            write_checksum=True, dict_data=zstandard.train_dictionary(400, [data] * 50, dict_id=7)
        ),
    ):
        with pytest.raises(DecompressFailed):
            unpack(context.compress(data), len(data))


def test_a_window_beyond_the_limit_is_an_error(unpack):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=25, write_checksum=True)
    context = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=64 << 20)
    packed = b"".join(context.compress(bytes(1 << 20)) for _ in range(64)) + context.flush()

    with pytest.raises(DecompressFailed):
        unpack(packed, 64 << 20)


@pytest.mark.feature("T13")
@pytest.mark.parametrize("level", [-1, 0, 20])
def test_a_level_outside_1_to_19_is_refused(level):
    with pytest.raises(InvalidSpec):
        ZstdCompressor(level)
