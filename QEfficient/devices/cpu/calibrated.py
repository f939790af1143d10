"""Rounding that knows what a layer is fed with: the error of each column is made up for by the columns behind it.

The columns of a matrix are rounded one after the other. What rounding one changes in the layer's outputs, over the
activations that were seen, is taken back by a change of all columns that are still to come
(Frantar et al., GPTQ, 2022).
"""

from __future__ import annotations

import numpy as np

from QEfficient.devices.cpu.quantization import Grid, Rounded, round_rows

DAMPING = 0.01
"""Part of the mean diagonal that is added to it: directions that were hardly seen must not matter without bound."""


class Feedback:
    """How errors travel from column to column, for one set of activations `[tokens, in]`."""

    def __init__(self, activations: np.ndarray) -> None:
        width = activations.shape[1]
        products = np.zeros((width, width), np.float32)
        for start in range(0, len(activations), 4096):
            part = activations[start : start + 4096].astype(np.float32)
            products += part.T @ part
        diagonal = np.diag(products).copy()
        products[np.diag_indices(width)] += DAMPING * diagonal.mean() + (diagonal == 0)
        self.importance = diagonal
        inverse = np.linalg.inv(products.astype(np.float64))
        self._triangle = np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float32)

    def round_rows(self, weights: np.ndarray, grid: Grid) -> Rounded:
        """As `quantization.round_rows`."""
        left = weights.copy()
        width = left.shape[1]
        levels = np.empty(left.shape, np.uint8)
        scales, zeros = [], []
        for start in range(0, width, grid.group):
            stop = min(start + grid.group, width)
            first = round_rows(left[:, start:stop], grid, self.importance[start:stop])
            levels[:, start:stop], errors = self._round_group(left[:, start:stop], first, grid, start)
            left[:, stop:] -= errors @ self._triangle[start:stop, stop:]
            scales.append(first.scales)
            if first.zeros is not None:
                zeros.append(first.zeros)
        return Rounded(levels, np.concatenate(scales, 1), np.concatenate(zeros, 1) if zeros else None)

    def _round_group(
        self, columns: np.ndarray, first: Rounded, grid: Grid, start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The levels of one group, column by column, and the errors that those behind it have to make up for."""
        scale = first.scales[:, 0].astype(np.float32)
        zero = np.float32(grid.middle) if first.zeros is None else first.zeros[:, 0].astype(np.float32)
        levels, errors = np.empty(columns.shape, np.uint8), np.empty(columns.shape, np.float32)
        for column in range(columns.shape[1]):
            row = self._triangle[start + column, start + column : start + columns.shape[1]]
            rounded = np.clip(np.rint(columns[:, column] / scale) + zero, 0, grid.largest)
            errors[:, column] = (columns[:, column] - (rounded - zero) * scale) / row[0]
            columns[:, column:] -= np.outer(errors[:, column], row)
            levels[:, column] = rounded
        return levels, errors
