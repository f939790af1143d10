from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from QEfficient.errors import DeviceError
from QEfficient.generation.request import Request
from QEfficient.generation.sampling import _passing, min_p, penalties, sample, temperature, top_k, top_p
from QEfficient.specs import SamplingParams

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def request(generated: tuple[int, ...] = (), prompt: tuple[int, ...] = (0,), **params: Any) -> Request:
    return Request(prompt, SamplingParams(**params), generated=list(generated))


def rows(count: int) -> np.ndarray:
    return np.tile(LOGITS, (count, 1))


def kept(logits: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in logits]


def test_greedy_is_argmax() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    assert sample(logits, [request()] * 4) == logits.argmax(-1).tolist()


def test_logits_of_the_caller_stay() -> None:
    logits = rows(2)
    sample(logits, [request(top_k=1, temperature=1.0, repetition_penalty=2.0), request()])
    assert np.array_equal(logits, rows(2))


def test_top_k_per_row() -> None:
    requests = [request(top_k=k) for k in (0, 1, 3, 5, 9)]
    every = [0, 1, 2, 3, 4]
    assert kept(top_k(rows(5), requests)) == [every, [1], [1, 2, 3], every, every]


def test_top_p_per_row() -> None:
    requests = [request(top_p=p) for p in (1.0, 0.3, 0.5, 0.66, 0.9, 0.99)]
    expected = [[0, 1, 2, 3, 4], [1], [1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert kept(top_p(rows(6), requests)) == expected


def test_top_p_after_top_k() -> None:
    requests = [request(top_k=2, top_p=0.6)]  # 0.4 / 0.65 suffices
    assert kept(top_p(top_k(rows(1), requests), requests)) == [[1]]


def test_min_p_per_row() -> None:
    assert kept(min_p(rows(3), [request(min_p=p) for p in (0.0, 0.3, 1.0)])) == [[0, 1, 2, 3, 4], [1, 2, 3], [1]]


def test_temperature_per_row() -> None:
    assert np.allclose(temperature(rows(2), [request(temperature=2.0), request()]), [LOGITS / 2, LOGITS])


def test_penalties() -> None:
    logits = np.array([[2.0, -2.0, 1.0, 1.0]] * 3, np.float32)
    requests = [
        request((1,), repetition_penalty=2.0),  # prompt token 0 counts too
        request((1, 1, 2), presence_penalty=0.5),
        request((1, 1, 2), frequency_penalty=0.5),
    ]
    expected = [[1.0, -4.0, 1.0, 1.0], [2.0, -2.5, 0.5, 1.0], [2.0, -3.0, 0.5, 1.0]]
    assert np.allclose(penalties(logits, requests), expected)


def test_penalties_change_greedy_too() -> None:
    logits = np.array([[1.0, 0.9, 0.0]], np.float32)
    assert sample(logits, [request(repetition_penalty=2.0)]) == [1]


def test_draws_follow_the_probabilities() -> None:
    drawing = request(temperature=1.0, seed=0)
    counts = np.bincount([sample(rows(1), [drawing])[0] for _ in range(4000)], minlength=5)
    assert np.allclose(counts / 4000, np.exp(LOGITS), atol=0.03)


def test_cut_tokens_are_never_drawn() -> None:
    drawing = request(temperature=3.0, top_k=2, seed=0)
    assert {sample(rows(1), [drawing])[0] for _ in range(200)} == {1, 3}


def test_row_mates_do_not_matter() -> None:
    alone, together = (request(temperature=1.0, seed=3) for _ in range(2))
    mate = request(temperature=0.5, top_p=0.9, seed=4)
    first = [sample(rows(1), [alone])[0] for _ in range(50)]
    assert first == [sample(rows(3), [mate, together, request()])[1] for _ in range(50)]


def test_impossible_tokens() -> None:
    logits = np.array([[-np.inf, 3.0, -np.inf]], np.float32)
    for drawing in (request(), request(temperature=1.0), request(temperature=1.0, top_p=0.5, min_p=0.1, top_k=2)):
        assert sample(logits, [drawing]) == [1]


def test_a_large_vocabulary_is_drawn_from_evenly() -> None:
    drawing, size = request(temperature=1.0, seed=0), 5000
    drawn = [sample(np.zeros((1, size), np.float32), [drawing])[0] for _ in range(4000)]
    quarters = np.bincount(np.array(drawn) * 4 // size)
    assert np.allclose(quarters / 4000, 0.25, atol=0.03)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999, np.nextafter(1.0, 0.0)])
def test_two_strides_find_what_one_finds(share: float) -> None:
    weights = np.random.default_rng(1).exponential(size=1300)
    mass = np.cumsum(weights)
    assert _passing(weights, share) == np.searchsorted(mass, share * mass[-1], side="right")


def test_tiny_top_p_keeps_the_best() -> None:
    assert kept(top_p(rows(1), [request(top_p=1e-30)])) == [[1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_is_an_error(bad: float) -> None:
    logits = rows(2)
    logits[1, 3] = bad
    with pytest.raises(DeviceError, match="no finite numbers"):
        sample(logits, [request(), request(temperature=1.0)])


def test_a_link_may_be_added() -> None:
    def forbid_the_best(logits: np.ndarray, requests: object) -> np.ndarray:
        logits[:, 1] = -np.inf
        return logits

    assert sample(rows(1), [request(temperature=1.0, top_k=1)], (forbid_the_best, temperature, top_k)) == [3]
