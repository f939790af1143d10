"""The packed layout: there and back, in slices, and byte by byte where the kernel reads it."""

from __future__ import annotations

import numpy as np
import pytest

from QEfficient.devices.cpu.packing import pack, pack_groups, unpack, unpack_groups

SHAPES = [(16, 32), (1, 8), (17, 100), (100, 257), (48, 384)]


def random_values(shape: tuple[int, int], bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_there_and_back(shape: tuple[int, int], group: int, bits: int) -> None:
    values = random_values(shape, bits)
    packed = pack(values, bits, group)
    tiles, inputs = -(-shape[0] // 16), -(-shape[1] // group) * group
    assert packed.shape == (tiles, 16 * inputs * bits // 8) and packed.dtype == np.uint8
    assert np.array_equal(unpack(packed, bits, group, *shape), values)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
@pytest.mark.parametrize("channels", [1, 16, 33])
def test_groups_there_and_back(channels: int, dtype: type) -> None:
    numbers = np.arange(channels * 3).reshape(channels, 3).astype(dtype)
    packed = pack_groups(numbers)
    assert packed.shape == (-(-channels // 16), 3, 16) and packed.dtype == dtype
    assert packed[-1, 2, (channels - 1) % 16] == numbers[-1, 2]
    assert np.array_equal(unpack_groups(packed, channels), numbers)


def test_where_a_weight_lies() -> None:
    """Block by block: 16 channels of 8 inputs (low halves 0 to 3, high halves 4 to 7) or of 4."""
    values = random_values((32, 64), 4)
    four, eight = pack(values, 4, 32), pack(values, 8, 32)
    for channel, k in ((0, 0), (5, 3), (15, 4), (20, 31), (31, 63)):
        tile, lane, byte = channel // 16, channel % 16 * 4, k % 4
        nibbles = four[tile, k // 8 * 64 + lane + byte]
        assert (nibbles >> 4 if k % 8 > 3 else nibbles & 15) == values[channel, k]
        assert eight[tile, k // 4 * 64 + lane + byte] == values[channel, k]


@pytest.mark.parametrize("bits", [4, 8])
def test_padding_is_the_zero_point(bits: int) -> None:
    values, zeros = random_values((3, 40), bits), np.array([[1, 2], [3, 4], [5, 6]], np.uint8)
    symmetric = unpack(pack(values, bits, 32), bits, 32, 3, 64)
    assert (symmetric[:, 40:] == 1 << (bits - 1)).all()
    asymmetric = unpack(pack(values, bits, 32, zeros), bits, 32, 3, 64)
    assert (asymmetric[:, 40:] == [[2], [4], [6]]).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_slices_of_whole_tiles_are_slices_of_the_whole(bits: int) -> None:
    values = random_values((70, 96), bits)
    slices = [pack(values[start : start + 32], bits, 32) for start in range(0, 70, 32)]
    assert np.array_equal(np.concatenate(slices), pack(values, bits, 32))


def test_values_are_not_changed() -> None:
    values = random_values((16, 32), 4)
    before = values.copy()
    pack(values, 4, 32)
    assert np.array_equal(values, before)


def test_what_cannot_be_packed() -> None:
    values = random_values((4, 32), 8)
    with pytest.raises(ValueError, match="2 bits in groups of 32"):
        pack(values, 2, 32)
    with pytest.raises(ValueError, match="8 bits in groups of 48"):
        pack(values, 8, 48)
    with pytest.raises(ValueError, match="4 bits hold 0 to 15, but the weights have a 255"):
        pack(np.full((4, 32), 255, np.uint8), 4, 32)
    with pytest.raises(ValueError, match="of int8"):
        pack(values.view(np.int8), 8, 32)
