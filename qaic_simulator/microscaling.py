"""MXFP6 and MXINT8, bit for bit: blocks of 32 numbers that share a power of two.

An MXFP6 element has a sign, 2 bits of exponent and 3 of mantissa, an MXINT8 element is a count of 64ths. Which way the
compiler rounds is not known, so the rounding is an argument: `even` (ties to the even code), `nearest` (ties away from
zero) or `floor` (toward zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 32
"""Numbers that share a scale."""
ROUNDINGS = ("even", "nearest", "floor")

_BIAS = 127
_NOT_A_NUMBER = 255
"""The scale code of a block that holds NaN or an infinity."""
_SIGN, _LARGEST_CODE = 32, 31
_LARGEST_COUNT = 127
_TOP_EXPONENT = 2
"""The exponent of the largest MXFP6 element: scaled blocks reach into [4, 8)."""


@dataclass(frozen=True)
class Encoded:
    """Blocks as a device stores them, one element a byte."""

    elements: np.ndarray
    """MXFP6: uint8 codes, the sign in bit 5; MXINT8: int8. The shape of the values, without padding."""
    scales: np.ndarray
    """uint8, the exponent + 127; 255: the whole block is NaN. One for each 32 elements, rounded up, along `axis`."""
    axis: int


def round_mxfp6(values: np.ndarray, axis: int, rounding: str = "even") -> np.ndarray:
    """The float32 values that are left of `values` in blocks of MXFP6 along `axis`."""
    return decode_mxfp6(encode_mxfp6(values, axis, rounding))


def round_mxint8(values: np.ndarray, axis: int, rounding: str = "even") -> np.ndarray:
    """The float32 values that are left of `values` in blocks of MXINT8 along `axis`."""
    return decode_mxint8(encode_mxint8(values, axis, rounding))


def encode_mxfp6(values: np.ndarray, axis: int, rounding: str = "even") -> Encoded:
    """Blocks of 6-bit elements; magnitudes above 7.5 scales become 7.5 scales."""
    blocks, scales = _scaled_blocks(values, axis, _TOP_EXPONENT)
    signs = np.signbit(blocks)
    magnitudes = np.abs(blocks)
    # Below 2 the steps are 1/8, and each doubling doubles them: codes count steps, 8 to a doubling.
    doublings = np.clip(np.frexp(magnitudes)[1] - 1, 0, _TOP_EXPONENT)
    steps = _rounder(rounding)(np.ldexp(magnitudes, 3 - doublings))
    codes = np.minimum(steps.astype(np.uint8) + 8 * doublings.astype(np.uint8), _LARGEST_CODE)
    return _encoded(codes + np.where(signs, np.uint8(_SIGN), np.uint8(0)), scales, values, axis)


def decode_mxfp6(encoded: Encoded) -> np.ndarray:
    """The float32 values of the codes."""
    return _decoded(_element_values()[encoded.elements], encoded)


def encode_mxint8(values: np.ndarray, axis: int, rounding: str = "even") -> Encoded:
    """Blocks of counts from -127 to 127; -128 is not used, and zero has no sign."""
    blocks, scales = _scaled_blocks(values, axis, 0)
    counts = np.minimum(_rounder(rounding)(np.abs(blocks) * np.float32(64)), _LARGEST_COUNT)
    return _encoded(np.copysign(counts, blocks).astype(np.int8), scales, values, axis)


def decode_mxint8(encoded: Encoded) -> np.ndarray:
    """The float32 values of the counts."""
    return _decoded(encoded.elements.astype(np.float32) / np.float32(64), encoded)


def bytes_of(shape: Sequence[int], axis: int, bits: int) -> int:
    """Bytes of a tensor with `bits` an element and a scale byte a block; the last block is padded to 32 elements."""
    axis = _checked_axis(axis, len(shape))
    blocks = _blocks_along(shape[axis]) * math.prod(n for i, n in enumerate(shape) if i != axis)
    return blocks * (BLOCK * bits // 8 + 1)


def _element_values() -> np.ndarray:
    """What the 64 codes of MXFP6 stand for, float32 `[64]`."""
    codes = np.arange(_SIGN, dtype=np.int32)
    doublings = np.maximum(codes // 8 - 1, 0)
    magnitudes = np.ldexp((codes - 8 * doublings).astype(np.float32), doublings - 3)
    return np.concatenate([magnitudes, -magnitudes])


def _scaled_blocks(values: np.ndarray, axis: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks `[..., blocks, 32]` divided by their scales, so that the exponents end at `largest`; and scale codes."""
    blocks = _split(values, axis)
    peaks = np.abs(blocks).max(-1, keepdims=True, initial=0)
    finite = np.isfinite(peaks)
    if not finite.all():
        blocks, peaks = np.where(finite, blocks, np.float32(0)), np.where(finite, peaks, np.float32(0))
    exponents = np.frexp(peaks)[1] - 1 - largest
    # A block of zeros takes the smallest scale, and no scale is smaller.
    exponents = np.where(peaks == 0, -_BIAS, np.maximum(exponents, -_BIAS))
    codes = np.where(finite, exponents + _BIAS, _NOT_A_NUMBER).astype(np.uint8)
    # Exact but where the quotient is below the smallest normal float, which is far below half a step.
    return blocks * np.ldexp(np.float32(1), -exponents), codes[..., 0]


def _split(values: np.ndarray, axis: int) -> np.ndarray:
    """float32 `[..., blocks, 32]` with the blocked axis last, padded with zeros."""
    if values.dtype not in (np.float32, np.float16):
        raise ValueError(f"the values are {values.dtype}; blocks are made of float32 or float16.")
    moved = np.moveaxis(values, _checked_axis(axis, values.ndim), -1)
    blocks = _blocks_along(moved.shape[-1])
    padded = np.zeros((*moved.shape[:-1], blocks * BLOCK), np.float32)
    padded[..., : moved.shape[-1]] = moved
    return padded.reshape(*moved.shape[:-1], blocks, BLOCK)


def _encoded(elements: np.ndarray, scales: np.ndarray, values: np.ndarray, axis: int) -> Encoded:
    """Blocks `[..., blocks, 32]` as a record in the shape of `values`."""
    flat = elements.reshape(*elements.shape[:-2], elements.shape[-2] * BLOCK)[..., : values.shape[axis]]
    return Encoded(_move_last(flat, axis), _move_last(scales, axis), axis)


def _move_last(array: np.ndarray, axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, axis))


def _decoded(elements: np.ndarray, encoded: Encoded) -> np.ndarray:
    """Element values times their scales."""
    lost = encoded.scales == _NOT_A_NUMBER
    exponents = np.where(lost, 0, encoded.scales.astype(np.int32) - _BIAS)
    scales = np.where(lost, np.float32(np.nan), np.ldexp(np.float32(1), exponents))
    block_of = np.arange(elements.shape[encoded.axis]) // BLOCK
    decoded: np.ndarray = elements * np.take(scales, block_of, encoded.axis)
    return decoded


def _rounder(rounding: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that rounds magnitudes to whole numbers."""
    rounders: dict[str, Callable[[np.ndarray], np.ndarray]]
    rounders = {"even": np.rint, "nearest": _round_away, "floor": np.floor}
    if rounding not in rounders:
        raise ValueError(f"the rounding is {rounding!r}; it can be one of {', '.join(ROUNDINGS)}.")
    return rounders[rounding]


def _round_away(magnitudes: np.ndarray) -> np.ndarray:
    # Not floor(magnitudes + 0.5): that sum rounds up just below one half.
    whole = np.floor(magnitudes)
    rounded: np.ndarray = whole + (magnitudes - whole >= np.float32(0.5))
    return rounded


def _blocks_along(length: int) -> int:
    return -(-length // BLOCK)


def _checked_axis(axis: int, dimensions: int) -> int:
    """The axis counted from the front."""
    if not -dimensions <= axis < dimensions:
        raise ValueError(f"axis {axis} was asked for, but the values have {dimensions} dimensions.")
    return axis % dimensions
