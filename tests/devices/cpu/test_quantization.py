"""Rounding to 8 and 4 bits: the grid, the scales, and what calibration wins."""

from __future__ import annotations

import numpy as np
import pytest

from QEfficient.devices.cpu.calibrated import Feedback
from QEfficient.devices.cpu.quantization import Grid, restore, round_rows

GRIDS = [Grid(bits, group, symmetric) for bits in (4, 8) for group in (32, 128) for symmetric in (True, False)]


def weights(rows: int = 24, width: int = 200, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.standard_normal((rows, width)) + shift).astype(np.float32)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_error_is_that_of_the_grid(grid: Grid) -> None:
    wanted = weights()
    rounded = round_rows(wanted, grid)
    assert rounded.values.max() <= grid.largest
    assert rounded.scales.shape == (24, -(-200 // grid.group))
    assert (rounded.zeros is None) == grid.symmetric
    # A normal group spans about 5 (128) or 4 (32) standard deviations; an even error is a step / sqrt(12).
    assert relative_error(restore(rounded, grid), wanted) < (0.12 if grid.bits == 4 else 0.008)


def test_values_on_the_grid_come_back() -> None:
    grid = Grid(4, 32, symmetric=True)
    levels = np.tile(np.arange(16, dtype=np.float32) - 8, (3, 4))
    wanted = levels * np.float32(0.25)
    np.testing.assert_array_equal(restore(round_rows(wanted, grid), grid), wanted)


def test_zero_points_pay_where_weights_are_one_sided() -> None:
    wanted = weights(shift=3.0)
    errors = [relative_error(restore(round_rows(wanted, grid), grid), wanted) for grid in (GRIDS[2], GRIDS[3])]
    assert errors[1] < 0.7 * errors[0]


def test_zeros_stay_zero_and_huge_weights_finite() -> None:
    wanted = weights()
    wanted[0] = 0
    wanted[1] *= 1e6
    for grid in GRIDS:
        restored = restore(round_rows(wanted, grid), grid)
        assert not restored[0].any()
        assert np.isfinite(restored).all()


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    wanted, grid = weights(64, 128), Grid(4, 128, symmetric=True)
    importance = np.where(np.arange(128) < 16, 100.0, 0.01).astype(np.float32)
    plain, weighed = (restore(round_rows(wanted, grid, given), grid) for given in (None, importance))
    assert relative_error(weighed[:, :16], wanted[:, :16]) < relative_error(plain[:, :16], wanted[:, :16])


@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(4, 128, False), Grid(8, 64, True)], ids=str)
def test_feedback_keeps_outputs_rather_than_weights(grid: Grid) -> None:
    random = np.random.default_rng(1)
    mixing = random.standard_normal((200, 200)) * np.geomspace(1, 0.01, 200)
    activations = (random.standard_normal((2000, 200)) @ mixing).astype(np.float32)
    wanted = weights()
    plain = restore(round_rows(wanted, grid), grid)
    fed = restore(Feedback(activations).round_rows(wanted, grid), grid)
    errors = [relative_error(activations @ found.T, activations @ wanted.T) for found in (plain, fed)]
    assert errors[1] < 0.7 * errors[0]
    assert relative_error(plain, wanted) < relative_error(fed, wanted)


def test_feedback_without_signal_is_plain_rounding() -> None:
    grid, wanted = Grid(4, 32, True), weights()
    fed = Feedback(np.zeros((10, 200), np.float32)).round_rows(wanted, grid)
    assert relative_error(restore(fed, grid), wanted) < 0.12
