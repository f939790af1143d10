"""The layout of compressed weights that the native kernel reads in place; `native/linear.hpp` describes it.

A tile is 16 output channels. Tiles are packed independently of one another, so that a layer can be packed in slices of
whole tiles and written slice after slice.
"""

from __future__ import annotations

import numpy as np

TILE = 16
BITS = (4, 8)
GROUPS = (32, 64, 128)
_INPUTS = 4
"""Inputs of a channel that lie beside one another, a byte each."""


def pack(values: np.ndarray, bits: int, group: int, zeros: np.ndarray | None = None) -> np.ndarray:
    """`[channels, inputs]` bytes → `[tiles, bytes of a tile]`.

    The inputs are padded to whole groups with the zero points `[channels, groups]`, by default half the range.
    """
    _check(values, bits, group)
    channels, inputs = values.shape
    groups = _divide_up(inputs, group)
    if inputs < groups * group or channels % TILE:
        padded = np.full((_divide_up(channels, TILE) * TILE, groups * group), 1 << (bits - 1), np.uint8)
        padded[:channels, :inputs] = values
        if zeros is not None:
            padded[:channels, inputs:] = zeros[:, -1:]
        values = padded
    words: np.ndarray = np.ascontiguousarray(values).view(np.uint32).reshape(-1, TILE, values.shape[1] // _INPUTS)
    if bits == 4:
        words = words[..., ::2] | words[..., 1::2] << 4
    return np.ascontiguousarray(words.swapaxes(1, 2)).view(np.uint8).reshape(len(words), -1)


def unpack(packed: np.ndarray, bits: int, group: int, channels: int, inputs: int) -> np.ndarray:
    """The inverse of `pack`."""
    width = _divide_up(inputs, group) * group
    words: np.ndarray = np.ascontiguousarray(packed).view(np.uint32).reshape(_divide_up(channels, TILE), -1, TILE)
    values = np.empty((words.shape[0], TILE, width // _INPUTS), np.uint32)
    if bits == 4:
        values[..., ::2] = (words & 0x0F0F0F0F).swapaxes(1, 2)
        values[..., 1::2] = (words >> 4 & 0x0F0F0F0F).swapaxes(1, 2)
    else:
        values[...] = words.swapaxes(1, 2)
    return values.view(np.uint8).reshape(-1, width)[:channels, :inputs]


def pack_groups(numbers: np.ndarray) -> np.ndarray:
    """Scales or zero points: `[channels, groups]` → `[tiles, groups, 16]`."""
    channels, groups = numbers.shape
    padded = np.zeros((_divide_up(channels, TILE) * TILE, groups), numbers.dtype)
    padded[:channels] = numbers
    return np.ascontiguousarray(padded.reshape(-1, TILE, groups).swapaxes(1, 2))


def unpack_groups(packed: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `pack_groups`."""
    return packed.swapaxes(1, 2).reshape(-1, packed.shape[1])[:channels]


def _divide_up(number: int, by: int) -> int:
    return -(-number // by)


def _check(values: np.ndarray, bits: int, group: int) -> None:
    if bits not in BITS or group not in GROUPS:
        raise ValueError(f"weights of {bits} bits in groups of {group}: the kernel has bits {BITS}, groups {GROUPS}.")
    if values.dtype != np.uint8 or values.ndim != 2:
        raise ValueError(f"weights are [channels, inputs] of uint8, not {values.shape} of {values.dtype}.")
    if bits == 4 and values.max(initial=0) > 15:
        raise ValueError(f"4 bits hold 0 to 15, but the weights have a {values.max()}.")
