"""MXFP6 and MXINT8: blocks of 32 numbers that share a power of two, rounded to the nearest, ties to even.

Which way the compiler rounds is not published.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
SMALLEST_SCALE = -127
FP6_DOUBLINGS, FP6_STEPS, FP6_LARGEST = 2, 3, 7.5
"""Of MXFP6: exponents 0 to 2 beyond the scale, 2^-3 between elements below 2, the largest element."""
INT8_STEPS, INT8_LARGEST = 6, 127 / 64
"""Of MXINT8: multiples of 2^-6 up to this."""


def round_mxfp6(values: np.ndarray, axis: int) -> np.ndarray:
    """What is left of float32 `values` in blocks of MXFP6 along `axis`."""
    return _rounded(values, axis, FP6_DOUBLINGS, FP6_STEPS, FP6_LARGEST)


def round_mxint8(values: np.ndarray, axis: int) -> np.ndarray:
    """What is left of float32 `values` in blocks of MXINT8 along `axis`."""
    found: np.ndarray = _rounded(values, axis, 0, INT8_STEPS, INT8_LARGEST) + np.float32(0)  # whole numbers have no -0
    return found


def _rounded(values: np.ndarray, axis: int, doublings: int, steps: int, largest: float) -> np.ndarray:
    moved = np.moveaxis(values, axis, -1)
    blocks = np.zeros((*moved.shape[:-1], -(-moved.shape[-1] // BLOCK) * BLOCK), np.float32)
    blocks[..., : moved.shape[-1]] = moved
    blocks = blocks.reshape(*moved.shape[:-1], -1, BLOCK)
    with np.errstate(invalid="ignore", over="ignore"):
        found = _rounded_blocks(blocks, doublings, steps, largest)
    flat = found.reshape(*moved.shape[:-1], -1)[..., : moved.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))


def _rounded_blocks(blocks: np.ndarray, doublings: int, steps: int, largest: float) -> np.ndarray:
    """Blocks `[..., 32]`; one with an infinity or NaN in it is NaN as a whole."""
    peaks = np.abs(blocks).max(-1, keepdims=True)
    scale = np.maximum(_exponents(np.where(np.isfinite(peaks), peaks, 0)) - doublings, SMALLEST_SCALE)
    scaled = np.ldexp(blocks, -scale)
    step = np.clip(_exponents(np.where(np.isfinite(scaled), scaled, 0)), 0, doublings) - steps
    kept = np.clip(np.ldexp(np.rint(np.ldexp(scaled, -step)), step), -largest, largest)
    found: np.ndarray = np.where(np.isfinite(peaks), np.ldexp(kept, scale), np.float32(np.nan)).astype(np.float32)
    return found


def _exponents(values: np.ndarray) -> np.ndarray:
    """floor(log2 |x|), exactly."""
    found: np.ndarray = np.frexp(values)[1] - 1
    return found
