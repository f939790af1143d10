from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from QEfficient.errors import DeviceError
from QEfficient.generation.adjustments import ADJUSTMENTS, Adjustment
from QEfficient.generation.masks import OneOf
from QEfficient.generation.request import Request
from QEfficient.generation.sampling import CACHED, _blocks, _passing, draw, sample
from QEfficient.specs import SamplingParams

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.4},
    {"temperature": 1.3},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 0.8, "top_k": 3, "frequency_penalty": 0.3},
    {"temperature": 2.5, "top_p": 0.95},
    {"temperature": 0.7, "top_p": 0.6, "logit_bias": {7: 3.0}},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 9.0, "typical_p": 0.9, "presence_penalty": 1.0},
    {"temperature": 1.0, "top_k": 90, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
]


def request(generated: tuple[int, ...] = (), prompt: tuple[int, ...] = (0,), **params: Any) -> Request:
    return Request(prompt, SamplingParams(**params), generated=list(generated))


def rows(count: int) -> np.ndarray:
    return np.tile(LOGITS, (count, 1))


def random_logits(count: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, vocabulary)) * 3).astype(np.float32)


def test_greedy_is_argmax() -> None:
    logits = random_logits(4, 30)
    assert sample(logits, [request()] * 4) == logits.argmax(-1).tolist()


def test_filters_do_nothing_to_greedy() -> None:
    logits = random_logits(1, 30)
    asked = request(top_k=3, top_p=0.1, min_p=0.9, typical_p=0.01)  # whose most typical token is not the best
    assert sample(logits, [asked]) == logits.argmax(-1).tolist()


def test_greedy_rows_pay_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watching(scores: np.ndarray, requests: Any) -> np.ndarray:
        seen.append(len(scores))
        return draw(scores, requests)

    monkeypatch.setattr("QEfficient.generation.sampling.draw", watching)
    sample(random_logits(5, 30), [request(), request(temperature=1.0), request(), request(), request()])
    assert seen == [1]


def test_logits_of_the_caller_stay() -> None:
    logits = random_logits(len(KINDS), 300)
    before = logits.copy()
    sample(logits, [request((1, 2), **kind) for kind in KINDS])
    assert np.array_equal(logits, before)


def test_penalties_change_greedy_too() -> None:
    logits = np.array([[1.0, 0.9, 0.0]], np.float32)
    assert sample(logits, [request(repetition_penalty=2.0)]) == [1]


def counts_of(logits: np.ndarray, count: int, **params: Any) -> np.ndarray:
    """How often each token is drawn: rows of one batch, each with a request of its own."""
    drawing = [request(seed=seed, **params) for seed in range(count)]
    return np.bincount(sample(np.tile(logits, (count, 1)), drawing), minlength=logits.size)  # type: ignore[arg-type]


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """In standard deviations from what is expected of it."""
    alive = probabilities > 0
    assert not counts[~alive].any()
    expected = probabilities[alive] * counts.sum()
    freedom = alive.sum() - 1
    return float((((counts[alive] - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("size", [5, 700, 1100])
def test_draws_follow_the_probabilities(size: int) -> None:
    """In one block of the vocabulary, and over its blocks."""
    logits = np.random.default_rng(size).normal(size=size).astype(np.float32)
    logits[size // 2] = -np.inf
    count = max(20 * size, 2000)
    assert abs(chi_square(counts_of(logits, count, temperature=1.0), softmax(logits))) < 4
    assert abs(chi_square(counts_of(logits, count, temperature=2.0), softmax(logits / 2))) < 4
    assert chi_square(counts_of(logits, count, temperature=1.0), softmax(logits / 2)) > 10


@pytest.mark.parametrize(
    ("params", "kept"),
    [({"top_k": 3}, [1, 2, 3]), ({"top_p": 0.6}, [1, 3]), ({"min_p": 0.2}, [0, 1, 2, 3]), ({"typical_p": 0.4}, [2, 3])],
)
def test_filtered_draws_follow_what_is_left(params: dict[str, Any], kept: list[int]) -> None:
    wanted = np.full(5, -np.inf)
    wanted[kept] = LOGITS[kept]
    assert abs(chi_square(counts_of(LOGITS, 3000, temperature=1.0, **params), softmax(wanted))) < 4


def test_draws_of_one_request_are_independent() -> None:
    drawing = request(temperature=1.0, seed=0)
    drawn = [sample(rows(1), [drawing])[0] for _ in range(4000)]
    pairs = np.bincount(np.array(drawn[::2]) * 5 + np.array(drawn[1::2]), minlength=25)  # type: ignore[operator]
    assert abs(chi_square(pairs, np.outer(softmax(LOGITS), softmax(LOGITS)).ravel())) < 4


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_number_a_token(kind: dict[str, Any]) -> None:
    drawing = request(seed=5, **kind)
    for _ in range(3):
        sample(random_logits(1, 300), [drawing])
    numbers = np.random.default_rng(5).random(4)
    assert drawing.random.random() == numbers[0 if drawing.params.greedy else 3]


@pytest.mark.parametrize("vocabulary", [1001, 5003])
def test_row_mates_do_not_matter(vocabulary: int) -> None:
    """Every kind of row in every company, with logits so flat that a last bit would show in the tokens."""
    logits = random_logits(len(KINDS), vocabulary) * np.float32(0.2)

    def tokens(order: list[int]) -> dict[int, list[int | None]]:
        asked = {kind: request((3, 4, 3), seed=kind, **KINDS[kind]) for kind in order}
        steps = [sample(logits[order], [asked[kind] for kind in order]) for _ in range(20)]
        return {kind: [step[place] for step in steps] for place, kind in enumerate(order)}

    everybody = list(range(len(KINDS)))
    together = tokens(everybody)
    assert together == tokens(everybody[::-1])
    for kind in everybody:
        assert tokens([kind])[kind] == tokens([0, kind, 5, 7] if kind not in (0, 5, 7) else [kind])[kind]
        assert tokens([kind])[kind] == together[kind]


def test_weights_of_a_row_are_the_same_to_the_last_bit() -> None:
    scores, temperature = random_logits(9, 5003), np.linspace(0.5, 2.0, 9)
    blocks, sums = _blocks(scores, temperature)
    for row in range(9):
        own_blocks, own_sums = _blocks(scores[row : row + 1].copy(), temperature[row : row + 1])
        assert np.array_equal(own_blocks[0], blocks[row]) and np.array_equal(own_sums[0], sums[row])


def test_tokens_beyond_the_list_are_drawn_too() -> None:
    """A nucleus of nearly all tokens, far more than are listed at first."""
    logits = np.linspace(0.1, 0.0, 6000, dtype=np.float32)
    drawn = sample(np.tile(logits, (300, 1)), [request(temperature=1.0, top_p=0.95, seed=seed) for seed in range(300)])
    thirds = np.bincount(np.array(drawn) * 3 // 6000, minlength=3)  # type: ignore[operator]
    assert (thirds > 70).all() and max(token or 0 for token in drawn) < 0.96 * 6000


def test_large_batches_are_cut_up_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(8, 2000)

    def tokens() -> list[int | None]:
        return sample(logits, [request(temperature=1.0, seed=n, top_k=9 * (n % 2)) for n in range(8)])

    whole = tokens()
    assert logits.size < CACHED
    monkeypatch.setattr("QEfficient.generation.sampling.CACHED", 3 * 2000)
    assert tokens() == whole


def test_seeds_and_samples_differ() -> None:
    def tokens(seed: int | None, number: int = 0) -> list[int]:
        asked = Request((0,), SamplingParams(temperature=1.0, seed=seed), sample=number)
        return [sample(np.zeros((1, 5000), np.float32), [asked])[0] or 0 for _ in range(4)]

    assert tokens(3) == tokens(3) and tokens(3, 1) == tokens(3, 1) and tokens(-3) == tokens(-3)
    different = [tokens(3), tokens(4), tokens(-3), tokens(3, 1), tokens(3, 2), tokens(4, 1), tokens(None), tokens(None)]
    assert len({tuple(each) for each in different}) == len(different)


def test_impossible_tokens() -> None:
    logits = np.array([[-np.inf, 3.0, -np.inf]], np.float32)
    for kind in KINDS:
        assert sample(logits, [request(**kind)]) == [1]


@pytest.mark.parametrize("coldness", [1e-3, 1e-10, 1e-38, 1e-300])
def test_next_to_no_temperature_is_the_best_token(coldness: float) -> None:
    logits = random_logits(1, 3000)
    for kind in ({}, {"top_k": 5}, {"top_p": 0.9}, {"typical_p": 0.9}):
        assert sample(logits, [request(temperature=coldness, **kind)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999, np.nextafter(1.0, 0.0)])
def test_shares(share: float) -> None:
    weights = np.random.default_rng(1).exponential(size=(2, 1300))
    weights[:, 1200:] = 0.0
    place, left = _passing(weights, np.full(2, share))
    mass = np.cumsum(weights, axis=-1)
    for row in range(2):
        assert place[row] == np.searchsorted(mass[row], share * mass[row, -1], side="right") < 1200
        reached = mass[row, place[row]] - (1 - left[row]) * weights[row, place[row]]
        assert reached == pytest.approx(share * mass[row, -1]) and 0 <= left[row] < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 1])
def test_not_a_number_is_an_error(bad: float, row: int) -> None:
    logits = rows(2)
    logits[row, 3] = bad
    with pytest.raises(DeviceError, match="no finite numbers"):
        sample(logits, [request(), request(temperature=1.0, repetition_penalty=1.2)])


def test_an_adjustment_may_be_added() -> None:
    def forbid_the_best(scores: np.ndarray, rows: Any, requests: Any) -> None:
        scores[rows, 1] = -np.inf

    more = (*ADJUSTMENTS, Adjustment(lambda request: True, forbid_the_best))
    assert sample(rows(2), [request(temperature=1.0, top_k=1), request()], more) == [3, 3]


def test_a_mask_that_lets_nothing_come() -> None:
    blocked = Request((0,), SamplingParams(temperature=1.0), mask=OneOf([]))
    assert sample(rows(3), [request(), blocked, request()]) == [1, None, 1]
