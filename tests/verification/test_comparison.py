from __future__ import annotations

import math

import numpy as np

from QEfficient.verification.comparison import compare, percent

LOGITS = np.array([[0.0, 4.0, 1.0], [10.0, 2.0, 0.0]], np.float32)


def test_equal_logits_pass_without_error() -> None:
    result = compare(LOGITS, LOGITS)
    assert result.passed and result.tokens_equal
    assert (result.largest_error, result.mean_error, result.relative_error, result.kl) == (0, 0, 0, 0)


def test_errors_are_measured_against_the_spread_of_their_step() -> None:
    found = LOGITS.copy()
    found[1, 2] += 0.5
    result = compare(LOGITS, found)
    assert result.largest_error == 0.5
    assert math.isclose(result.relative_error, 0.05)
    assert result.first_error == 1 and result.tokens_equal and not result.passed
    assert result.kl > 0
    assert compare(LOGITS, found, tolerance=0.1).passed


def test_another_token_fails_where_it_is_not_as_good() -> None:
    found = LOGITS.copy()
    found[0] = [0.0, 1.0, 4.0]
    result = compare(LOGITS, found, tolerance=10.0)
    assert result.first_difference == 0 and not result.passed and result.worst_gap == 0.75


def test_of_two_tokens_that_are_equally_good_either_will_do() -> None:
    expected = np.array([[1.0, 1.0 + 1e-7, -1.0]])
    result = compare(expected, expected[:, [1, 0, 2]])
    assert result.passed and result.ties == 1


def test_what_is_no_number_is_an_error() -> None:
    found = LOGITS.copy()
    found[0, 0] = np.nan
    result = compare(LOGITS, found)
    assert result.relative_error == math.inf and result.kl == math.inf and result.first_error == 0


def test_a_token_that_a_model_forbids_is_no_error() -> None:
    forbidden = LOGITS.copy()
    forbidden[:, 2] = -np.inf
    assert compare(forbidden, forbidden).passed
    assert not compare(forbidden, LOGITS).passed


def test_percent() -> None:
    assert [percent(x) for x in (0.34, 0.00012, 1.5)] == ["34 %", "0.012 %", "150 %"]


def test_a_few_outliers_may_be_allowed_but_no_nan() -> None:
    expected = np.tile(LOGITS[:1], (8, 1))
    found = expected.copy()
    found[3] = [0.0, 1.0, 4.0]
    assert not compare(expected, found).passed
    result = compare(expected, found, outliers=0.1)
    assert result.passed and result.outliers == 1
    found[5] = found[3]
    assert not compare(expected, found, outliers=0.1).passed
    found[3], found[5] = np.nan, expected[5]
    assert not compare(expected, found, outliers=0.1).passed


def test_half_of_the_steps_must_be_near() -> None:
    found = np.tile(LOGITS[:1], (4, 1))
    found[:3, 2] += 0.2
    result = compare(np.tile(LOGITS[:1], (4, 1)), found, tolerance=0.1, typical=0.04)
    assert result.first_error is None and not result.passed and "half of the steps" in result.describe()
