"""Temperature, top-k, top-p, min-p and typical, against transformers' warpers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from QEfficient.generation import shortlist as filters
from QEfficient.generation.shortlist import Settings, Shortlist, best_first, loose_bounds, shortlist
from QEfficient.specs import SamplingParams

VOCABULARIES = (5, 257, 5000, 40_000)
SPREADS = (0.3, 3.0, 9.0)
"""Of the logits: from nearly even to nearly certain."""

SINGLE: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "top-k 1": ({"top_k": 1}, [theirs.TopKLogitsWarper(1)]),
    "top-k 40": ({"top_k": 40}, [theirs.TopKLogitsWarper(40)]),
    "top-k 4500": ({"top_k": 4500}, [theirs.TopKLogitsWarper(4500)]),
    "top-k of more than there are": ({"top_k": 10**9}, [theirs.TopKLogitsWarper(10**9)]),
    "top-p 0": ({"top_p": 0.0}, [theirs.TopPLogitsWarper(0.0)]),
    "top-p 0.3": ({"top_p": 0.3}, [theirs.TopPLogitsWarper(0.3)]),
    "top-p 0.95": ({"top_p": 0.95}, [theirs.TopPLogitsWarper(0.95)]),
    "min-p 0.1": ({"min_p": 0.1}, [theirs.MinPLogitsWarper(0.1)]),
    "min-p 1e-6": ({"min_p": 1e-6}, [theirs.MinPLogitsWarper(1e-6)]),
    "min-p 1": ({"min_p": 1.0}, [theirs.MinPLogitsWarper(1.0)]),
    "typical 0.2": ({"typical_p": 0.2}, [theirs.TypicalLogitsWarper(0.2)]),
    "typical 0.9": ({"typical_p": 0.9}, [theirs.TypicalLogitsWarper(0.9)]),
}
CHAINS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "cold": ({"temperature": 0.5, "top_p": 0.9}, [theirs.TemperatureLogitsWarper(0.5), theirs.TopPLogitsWarper(0.9)]),
    "hot": ({"temperature": 4.0, "min_p": 0.2}, [theirs.TemperatureLogitsWarper(4.0), theirs.MinPLogitsWarper(0.2)]),
    "k, p": ({"top_k": 30, "top_p": 0.8}, [theirs.TopKLogitsWarper(30), theirs.TopPLogitsWarper(0.8)]),
    "p, min": ({"top_p": 0.8, "min_p": 0.05}, [theirs.TopPLogitsWarper(0.8), theirs.MinPLogitsWarper(0.05)]),
    "p, typical": ({"top_p": 0.9, "typical_p": 0.7}, [theirs.TopPLogitsWarper(0.9), theirs.TypicalLogitsWarper(0.7)]),
    "min, typical": ({"min_p": 0.1, "typical_p": 0.7}, [theirs.MinPLogitsWarper(0.1), theirs.TypicalLogitsWarper(0.7)]),
    "all": (
        {"temperature": 1.5, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
        [theirs.TemperatureLogitsWarper(1.5), theirs.TopKLogitsWarper(60), theirs.TopPLogitsWarper(0.9),
         theirs.MinPLogitsWarper(0.02), theirs.TypicalLogitsWarper(0.8)],
    ),
}  # fmt: skip


def random_logits(vocabulary: int, spread: float, rows: int = 3) -> np.ndarray:
    seed = vocabulary * 10 + int(spread * 10)
    return (np.random.default_rng(seed).normal(size=(rows, vocabulary)) * spread).astype(np.float32)


def settings(*options: dict[str, Any]) -> Settings:
    return Settings.of([SamplingParams(**{"temperature": 1.0, **each}) for each in options])


def left(scores: np.ndarray, asked: Settings) -> list[dict[int, float]]:
    """Probability by token of what may be drawn; rows that want the whole list get it."""
    found = shortlist(scores, asked)
    rows = [_row(found, row) for row in range(len(scores))]
    for row in np.flatnonzero(found.short):
        only = np.array([row])
        rows[row] = _row(shortlist(scores[only], asked[only], whole=True), 0)
    return rows


def _row(found: Shortlist, row: int) -> dict[int, float]:
    weights = np.exp(found.scores[row])
    pairs = zip(found.tokens[row].tolist(), (weights / np.cumsum(weights)[-1]).tolist(), strict=True)
    return {token: probability for token, probability in pairs if probability > 0}


def warped(scores: np.ndarray, warpers: list[Any]) -> list[dict[int, float]]:
    tensor = torch.tensor(scores)
    for warper in warpers:
        tensor = warper(torch.zeros(len(scores), 1, dtype=torch.long), tensor)
    probabilities = tensor.double().softmax(-1).numpy()
    return [{int(token): float(row[token]) for token in np.flatnonzero(row)} for row in probabilities]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("case", [*SINGLE, *CHAINS])
def test_the_same_is_left_as_in_transformers(case: str, vocabulary: int, spread: float) -> None:
    options, warpers = (SINGLE | CHAINS)[case]
    scores = random_logits(vocabulary, spread)
    for found, wanted in zip(left(scores, settings(*[options] * 3)), warped(scores, warpers), strict=True):
        assert {*found} == {*wanted}
        assert found == pytest.approx(wanted, rel=1e-4)


def test_temperature_alone_changes_no_set() -> None:
    scores = random_logits(257, 3.0)
    asked = settings(*[{"temperature": 0.7}] * 3)
    assert not asked.narrowing(257).any()
    wanted = warped(scores, [theirs.TemperatureLogitsWarper(0.7)])
    for found, row in zip(left(scores, asked), wanted, strict=True):
        assert found == pytest.approx(row, rel=1e-4)


def test_rows_with_settings_of_their_own() -> None:
    cases = [{"temperature": 2.0}, *[options for options, _ in (SINGLE | CHAINS).values()]]
    scores = random_logits(5000, 3.0, rows=len(cases))
    together = left(scores, settings(*cases))
    for row, options in enumerate(cases):
        assert together[row] == left(scores[row : row + 1], settings(options))[0]


def test_a_row_is_the_same_to_the_last_bit_in_every_company() -> None:
    cases = [options for options, _ in (SINGLE | CHAINS).values()]
    scores = random_logits(5003, 3.0, rows=len(cases))
    together = shortlist(scores, settings(*cases))
    for row, options in enumerate(cases):
        alone = shortlist(scores[row : row + 1].copy(), settings(options))
        width = alone.scores.shape[1]
        assert np.array_equal(together.scores[row, :width], alone.scores[0])
        assert np.isneginf(together.scores[row, width:]).all() and together.short[row] == alone.short[0]
    listed = [filters.listed(s, settings(*[{"typical_p": 0.9}] * len(s)), loose_bounds(s, np.full(len(s), 50)))
              for s in (scores, scores[3:4].copy())]  # fmt: skip
    assert listed[0].rest[3] == listed[1].rest[0] > 0 and listed[0].moment[3] == listed[1].moment[0] < 0


def test_zeros_behind_change_no_sum() -> None:
    weights = np.random.default_rng(0).exponential(size=(3, 501))
    wide = np.concatenate([weights, np.zeros((3, 700))], axis=-1)
    assert np.array_equal(filters._sums(weights)[0], filters._sums(wide)[0])


def test_what_ties_with_the_last_stays() -> None:
    scores = np.array([[1.0, 3.0, 2.0, 2.0, 2.0, -1.0]], np.float32)
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        assert {*left(scores, settings(options))[0]} == {1, 2, 3, 4}


def test_impossible_tokens_stay_impossible() -> None:
    scores = np.full((1, 9000), -np.inf, np.float32)
    scores[0, [5, 8000]] = 1.0, 2.0
    for options, _ in (SINGLE | CHAINS).values():
        assert {*left(scores, settings(options))[0]} <= {5, 8000}


@pytest.mark.parametrize("count", [1, 7, 1000, 4096, 5000])
def test_bounds_hold(count: int) -> None:
    scores = random_logits(40_001, 3.0)
    bounds = loose_bounds(scores, np.full(3, count))
    reached = (scores >= bounds[:, None]).sum(axis=-1)
    assert (reached >= count).all()
    assert count > filters.BLOCKS // 2 or (reached < 3 * count + 10).all()


@pytest.mark.parametrize("bound", [-np.inf, 0.0, 8.0])
def test_best_first(bound: float) -> None:
    scores = np.round(random_logits(3000, 3.0))  # with many that tie
    scores[1, :2000] = -np.inf
    found, tokens = best_first(scores, np.full(3, bound, np.float32))
    for row in range(3):
        order = sorted(np.flatnonzero(scores[row] >= max(bound, -1e30)), key=lambda token: (-scores[row, token], token))
        assert tokens[row, : len(order)].tolist() == order
        assert found[row, : len(order)].tolist() == scores[row, order].tolist()
        assert np.isneginf(found[row, len(order) :]).all()
