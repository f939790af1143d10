"""Matrices → 8 or 4 bits: groups of a row's weights share a scale, and a zero point where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REFINEMENTS = 3
"""Rounds of fitting the scale to the rounded values and rounding again; more change nothing that shows."""


@dataclass(frozen=True)
class Grid:
    """How weights are rounded."""

    bits: int
    group: int
    symmetric: bool

    @property
    def middle(self) -> int:
        """The zero point of symmetric groups."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Rounded:
    """Rounded rows: a weight is `(values - zeros) * scales` of its group."""

    values: np.ndarray
    """uint8 `[rows, in]`."""
    scales: np.ndarray
    """float16 `[rows, groups]`."""
    zeros: np.ndarray | None
    """uint8 `[rows, groups]`; None: the middle everywhere."""


def round_rows(weights: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> Rounded:
    """Round float32 rows `[rows, in]`. `importance` `[in]` weighs the squared errors (mean squared activations)."""
    rows, width = weights.shape
    groups = -(-width // grid.group)
    padding = ((0, 0), (0, groups * grid.group - width))
    grouped = np.pad(weights, padding).reshape(rows, groups, grid.group)
    weigh = np.ones(width, np.float32) if importance is None else importance.astype(np.float32)
    weigh = np.pad(weigh, padding[1]).reshape(1, groups, grid.group)
    scales, zeros = _first_scales(grouped, grid)
    for _ in range(REFINEMENTS):
        levels = _levels(grouped, scales, zeros, grid)
        scales = _fitted(grouped, levels - zeros, weigh, scales)
    levels = _levels(grouped, scales, zeros, grid).reshape(rows, -1)[:, :width].astype(np.uint8)
    return Rounded(
        levels, scales[..., 0].astype(np.float16), None if grid.symmetric else zeros[..., 0].astype(np.uint8)
    )


def restore(rounded: Rounded, grid: Grid) -> np.ndarray:
    """The float32 weights that the rounded ones stand for."""
    rows, width = rounded.values.shape
    spread = np.arange(width) // grid.group
    scales = rounded.scales.astype(np.float32)[:, spread]
    zeros = grid.middle if rounded.zeros is None else rounded.zeros.astype(np.float32)[:, spread]
    restored: np.ndarray = (rounded.values.astype(np.float32) - zeros) * scales
    return restored


def _first_scales(grouped: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points that cover the range of each group, as float32 `[rows, groups, 1]`."""
    if grid.symmetric:
        # The side of the larger weight gets the one step that the other side does not have.
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)
        scales = _half(-largest / grid.middle)
        return scales, np.full_like(scales, grid.middle)
    low, high = np.minimum(grouped.min(-1, keepdims=True), 0), np.maximum(grouped.max(-1, keepdims=True), 0)
    scales = _half((high - low) / grid.largest)
    return scales, np.clip(np.rint(-low / scales), 0, grid.largest)


def _half(scales: np.ndarray) -> np.ndarray:
    """Scales as the file keeps them; a group of zeros gets one that is not zero."""
    limit = np.float32(np.finfo(np.float16).max)
    halves = np.clip(scales, -limit, limit).astype(np.float16).astype(np.float32)
    return np.where(halves == 0, np.float32(2.0**-14), halves)


def _levels(grouped: np.ndarray, scales: np.ndarray, zeros: np.ndarray, grid: Grid) -> np.ndarray:
    levels: np.ndarray = np.clip(np.rint(grouped / scales) + zeros, 0, grid.largest)
    return levels


def _fitted(grouped: np.ndarray, steps: np.ndarray, weigh: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The scales with the least weighted squared error for given steps; groups that are all zero keep theirs."""
    weighted = weigh * steps
    norm = (weighted * steps).sum(-1, keepdims=True)
    best = (weighted * grouped).sum(-1, keepdims=True) / np.where(norm == 0, 1, norm)
    return np.where(norm == 0, scales, _half(best))
