"""MXFP6 and MXINT8 against tables: every value that a format has, and a search for the neighbours in between.

The reference does no arithmetic of its own on exponents: the grid is spelled out, scales are found by comparison with
powers of two, and rounding compares exact distances in float64 or as fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from qaic_simulator import microscaling
from qaic_simulator.microscaling import Encoded, bytes_of

ROUNDINGS = ("even", "nearest", "floor")
POWERS = np.array([2.0**e for e in range(-150, 129)])
EXPONENTS = np.arange(-150, 129)


@dataclass(frozen=True)
class Format:
    """A format, spelled out."""

    name: str
    magnitudes: tuple[float, ...]
    """In the order of their codes."""
    top: int
    """The exponent of the power of two at or below the largest magnitude."""
    bits: int

    @property
    def round(self) -> Callable[[np.ndarray, int, str], np.ndarray]:
        function: Callable[[np.ndarray, int, str], np.ndarray] = getattr(microscaling, f"round_{self.name}")
        return function

    @property
    def encode(self) -> Callable[[np.ndarray, int, str], Encoded]:
        function: Callable[[np.ndarray, int, str], Encoded] = getattr(microscaling, f"encode_{self.name}")
        return function

    @property
    def decode(self) -> Callable[[Encoded], np.ndarray]:
        function: Callable[[Encoded], np.ndarray] = getattr(microscaling, f"decode_{self.name}")
        return function


# fmt: off
SIXES = (
    0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875,
    1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
    2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75,
    4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5,
)
# fmt: on
MXFP6 = Format("mxfp6", SIXES, 2, 6)
MXINT8 = Format("mxint8", tuple(k / 64 for k in range(128)), 0, 8)
FORMATS = [MXFP6, MXINT8]

all_formats = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
all_roundings = pytest.mark.parametrize("rounding", ROUNDINGS)


def searched(values: np.ndarray, form: Format, rounding: str) -> np.ndarray:
    """What is left of whole blocks `[blocks, 32]`, by search in tables of float64."""
    wide = np.abs(values.astype(np.float64))
    peaks = wide.max(-1)
    finite = np.isfinite(peaks)
    below = np.searchsorted(POWERS, np.where(finite, peaks, 0), side="right") - 1
    exponents = np.where(below < 0, -127, np.maximum(EXPONENTS[np.maximum(below, 0)] - form.top, -127))
    scales = 2.0 ** exponents[:, None]
    indices = chosen_codes(np.where(finite[:, None], wide, 0) / scales, form, rounding)
    rounded = np.array(form.magnitudes)[indices] * scales
    signed = np.where(np.signbit(values), -rounded, rounded)
    if form is MXINT8:
        signed += 0.0  # it has no negative zero
    return np.where(finite[:, None], signed, np.nan).astype(np.float32)


def chosen_codes(wide: np.ndarray, form: Format, rounding: str) -> np.ndarray:
    """Positions in the table of magnitudes."""
    table = np.array(form.magnitudes)
    lower = np.searchsorted(table, wide, side="right") - 1
    upper = np.minimum(lower + 1, len(table) - 1)
    if rounding == "floor":
        return lower
    middles = (table[lower] + table[upper]) / 2
    tied = wide == middles
    up = (wide > middles) | (tied & ((lower % 2 == 1) if rounding == "even" else True))
    return np.where(up, upper, lower)


def exactly(value: np.float32, exponent: int, form: Format, rounding: str) -> Fraction:
    """One element in exact arithmetic, by trying all magnitudes."""
    exact = abs(Fraction(float(value)))
    grid = [Fraction(m) * Fraction(2) ** exponent for m in form.magnitudes]
    if rounding == "floor":
        return max(g for g in grid if g <= exact)
    nearest = min(abs(g - exact) for g in grid)
    tied = [i for i, g in enumerate(grid) if abs(g - exact) == nearest]
    wanted = tied[-1] if rounding == "nearest" else next((i for i in tied if i % 2 == 0), tied[0])
    return grid[wanted]


def boundaries(form: Format, exponent: int) -> np.ndarray:
    """Every magnitude, every middle, the floats beside them, and the space above the largest one, for one scale."""
    table = np.array([*form.magnitudes, 2.0 ** (form.top + 1)])
    points = np.concatenate([table[:-1], (table[:-1] + table[1:]) / 2, [np.nextafter(table[-1], 0)]]) * 2.0**exponent
    points = np.minimum(points, np.finfo(np.float32).max).astype(np.float32)
    beside = [np.nextafter(points, np.finfo(np.float32).max), np.nextafter(points, np.float32(0))]
    ceiling = 2.0 ** (exponent + form.top + 1)
    every = np.unique(np.concatenate([points, *beside]).astype(np.float64))
    return every[(every < ceiling) & np.isfinite(every)].astype(np.float32)


def in_blocks(numbers: np.ndarray, peak: float) -> np.ndarray:
    """Blocks of these numbers, both signs, that all hold a peak: `[blocks, 32]`."""
    both = np.concatenate([numbers, -numbers])
    blocks = np.full((-(-len(both) // 31), 32), peak, np.float32)
    padded = np.zeros(len(blocks) * 31, np.float32)
    padded[: len(both)] = both
    blocks[:, 1:] = padded.reshape(-1, 31)
    return blocks


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[known].view(np.uint32), wanted[known].view(np.uint32))


def exponents_of(form: Format) -> Iterator[int]:
    largest = 127 - form.top
    yield from (-127, -126, -125, -124, -100, -1, 0, 1, 64, largest - 1, largest)


@all_formats
@all_roundings
def test_boundaries_of_every_kind_of_scale(form: Format, rounding: str) -> None:
    for exponent in exponents_of(form):
        numbers = boundaries(form, exponent)
        blocks = in_blocks(numbers, 2.0 ** (exponent + form.top))
        found = form.round(blocks, 1, rounding)
        assert_same_bits(found, searched(blocks, form, rounding))
        assert (form.encode(blocks, 1, rounding).scales == exponent + 127).all()


@all_formats
@all_roundings
@pytest.mark.parametrize("exponent", [-127, 3])
def test_boundaries_in_exact_arithmetic(form: Format, rounding: str, exponent: int) -> None:
    blocks = in_blocks(boundaries(form, exponent), 2.0 ** (exponent + form.top))
    found = form.round(blocks, 1, rounding)
    for value, rounded in zip(blocks.reshape(-1), found.reshape(-1), strict=True):
        assert abs(Fraction(float(rounded))) == exactly(value, exponent, form, rounding)
        assert rounded == 0 or (rounded > 0) == (value > 0)


@all_formats
@all_roundings
def test_scales_below_the_smallest_one_are_the_smallest(form: Format, rounding: str) -> None:
    """Subnormal blocks: the scale stops at 2**-127, elements use the lower part of the grid."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**23, (2000, 32), np.uint32) >> generator.integers(0, 24, (2000, 1), np.uint32)
    blocks = bits.view(np.float32) * generator.choice(np.float32([-1, 1]), (2000, 32))
    assert_same_bits(form.round(blocks, 1, rounding), searched(blocks, form, rounding))
    smallest = np.full((1, 32), np.float32(2.0**-149))
    assert form.encode(smallest, 1, rounding).scales == 0


@all_formats
@all_roundings
def test_ten_million_random_values(form: Format, rounding: str) -> None:
    generator = np.random.default_rng(ROUNDINGS.index(rounding))
    for kind in range(10):
        if kind < 4:
            blocks = generator.standard_normal((31250, 32), np.float32)
        else:  # all floats, in blocks whose elements are some powers of two apart
            bits = generator.integers(0, 2**32, (31250, 32), np.uint32)
            near = generator.integers(0, 256, (31250, 1), np.uint32)
            apart = np.clip(near.astype(np.int64) - generator.integers(0, 9, bits.shape), 0, 254).astype(np.uint32)
            blocks = (bits & np.uint32(0x807FFFFF) | apart << np.uint32(23)).view(np.float32)
        assert_same_bits(form.round(blocks, 1, rounding), searched(blocks, form, rounding))


@all_formats
@all_roundings
def test_values_of_the_format_stay(form: Format, rounding: str) -> None:
    for exponent in exponents_of(form):
        blocks = in_blocks(np.float32(np.array(form.magnitudes) * 2.0**exponent), form.magnitudes[-1] * 2.0**exponent)
        blocks = blocks + np.float32(0) if form is MXINT8 else blocks
        assert_same_bits(form.round(blocks, 1, rounding), blocks)


@pytest.mark.parametrize("peak", [7.75, 7.751, 7.9999995])
@all_roundings
def test_the_largest_magnitude_is_a_ceiling(peak: float, rounding: str) -> None:
    values = np.float32([peak, -peak, 1.0])
    np.testing.assert_array_equal(microscaling.round_mxfp6(values, 0, rounding), np.float32([7.5, -7.5, 1.0]))
    found = microscaling.round_mxint8(values / 4, 0, rounding)
    kept = 127 / 64 if peak > 7.99 else 124 / 64
    np.testing.assert_array_equal(found, np.float32([kept, -kept, 0.25]))


@all_formats
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_block_with_a_number_that_is_none_is_lost(form: Format, poison: float) -> None:
    values = np.ones((2, 96), np.float32)
    values[1, 40] = poison
    found = form.round(values, 1, "even")
    assert np.isnan(found[1, 32:64]).all() and np.isnan(found).sum() == 32
    assert (found[~np.isnan(found)] == 1).all()
    encoded = form.encode(values, 1, "even")
    assert encoded.scales[1].tolist() == [127 - form.top, 255, 127 - form.top] and not encoded.elements[1, 32:64].any()


@all_formats
def test_zeros(form: Format) -> None:
    values = np.float32([0.0, -0.0] * 16)
    encoded = form.encode(values, 0, "even")
    assert encoded.scales.tolist() == [0]
    assert np.signbit(form.decode(encoded)).tolist() == [False, form is MXFP6] * 16
    assert not form.decode(encoded).any()


def test_codes_of_mxfp6_are_sign_exponent_mantissa() -> None:
    magnitudes = np.float32(SIXES)
    encoded = microscaling.encode_mxfp6(np.stack([magnitudes, -magnitudes]), 1)
    assert encoded.elements.dtype == np.uint8 and encoded.scales.dtype == np.uint8
    assert encoded.elements.reshape(-1).tolist() == list(range(64))


def test_counts_of_mxint8_are_symmetric() -> None:
    counts = np.arange(-127, 128)
    values = np.concatenate([counts / 64, [1.0]]).astype(np.float32).reshape(8, 32)
    values[3:5, 0] = 1.0  # blocks of small numbers would take smaller scales
    encoded = microscaling.encode_mxint8(values, 1)
    assert encoded.elements.dtype == np.int8 and encoded.elements.min() == -127
    np.testing.assert_array_equal(microscaling.decode_mxint8(encoded), values)


@all_formats
@all_roundings
@pytest.mark.parametrize("shape", [(1,), (31,), (33,), (5, 70), (70, 5), (3, 65, 2), (2, 3, 32, 4), (0, 5), (5, 0)])
def test_shapes_and_axes(form: Format, rounding: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    for axis in range(-len(shape), len(shape)):
        found = form.round(values, axis, rounding)
        assert found.shape == shape and found.flags.c_contiguous
        encoded = form.encode(values, axis, rounding)
        blocks = -(-shape[axis] // 32)
        assert encoded.elements.shape == shape and encoded.scales.shape[axis] == blocks
        assert bytes_of(shape, axis, form.bits) == encoded.scales.size * (1 + 4 * form.bits)
        if not values.size:
            continue
        lines = np.moveaxis(values, axis, -1).reshape(-1, shape[axis])
        for line, rounded in zip(lines, np.moveaxis(found, axis, -1).reshape(lines.shape), strict=True):
            padded = np.pad(line, (0, -len(line) % 32)).reshape(-1, 32)
            assert_same_bits(rounded, searched(padded, form, rounding).reshape(-1)[: len(line)])


def test_sizes() -> None:
    assert bytes_of((64, 100), 0, 6) == 2 * 100 * 25
    assert bytes_of((64, 100), 1, 6) == 64 * 4 * 25
    assert bytes_of((1, 8, 4096, 128), -1, 8) == 8 * 4096 * 4 * 33


def test_half_precision_is_taken_as_it_is() -> None:
    halves = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float16)
    assert_same_bits(microscaling.round_mxfp6(halves, 1), microscaling.round_mxfp6(halves.astype(np.float32), 1))


def test_the_input_is_left_alone() -> None:
    values = np.float32([np.nan, 1.3, -0.0] * 30)
    before = values.copy()
    microscaling.round_mxfp6(values, 0)
    microscaling.round_mxint8(values, 0)
    np.testing.assert_array_equal(values.view(np.uint32), before.view(np.uint32))


@all_formats
def test_refusals(form: Format) -> None:
    with pytest.raises(ValueError, match="the rounding is 'up'; it can be one of even, nearest, floor"):
        form.round(np.ones(32, np.float32), 0, "up")
    with pytest.raises(ValueError, match="the values are float64"):
        form.round(np.ones(32), 0, "even")
    with pytest.raises(ValueError, match="axis 1 was asked for, but the values have 1 dimensions"):
        form.round(np.ones(32, np.float32), 1, "even")
    with pytest.raises(ValueError, match="axis 2"):
        bytes_of((3, 4), 2, 6)
