"""Biases, penalties and forbidden ends, against transformers' processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from QEfficient.generation.adjustments import ADJUSTMENTS
from QEfficient.generation.history import TokenCounts
from QEfficient.generation.request import Request
from QEfficient.generation.sampling import _adjust
from QEfficient.specs import SamplingParams

VOCABULARY = 300
BIASES = {0: 2.5, 17: -1.25, 299: 1.0}


def random_logits(rows: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 4).astype(np.float32)


def request(generated: tuple[int, ...] = (), prompt: tuple[int, ...] = (0,), eos: Any = (), **params: Any) -> Request:
    return Request(prompt, SamplingParams(**params), tuple(eos), generated=list(generated))


def adjusted(logits: np.ndarray, *requests: Request) -> np.ndarray:
    scores = logits.copy()
    _adjust(scores, requests, ADJUSTMENTS)
    return scores


def processed(logits: np.ndarray, history: tuple[int, ...], *processors: Any) -> np.ndarray:
    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(torch.tensor([history]), scores)
    return np.asarray(scores[0])


HISTORIES = [((5, 6, 5), ()), ((5, 6, 7, 299), (5, 5, 8, 0)), ((1,), tuple(range(50)))]


@pytest.mark.parametrize("penalty", [1.3, 0.7])
@pytest.mark.parametrize(("prompt", "generated"), HISTORIES)
def test_repetition(prompt: tuple[int, ...], generated: tuple[int, ...], penalty: float) -> None:
    logits = random_logits(1)
    wanted = processed(logits[0], prompt + generated, theirs.RepetitionPenaltyLogitsProcessor(penalty))
    found = adjusted(logits, request(generated, prompt, repetition_penalty=penalty))
    np.testing.assert_array_equal(found[0], wanted)


def test_bias() -> None:
    logits = random_logits(1)
    wanted = processed(logits[0], (1,), theirs.SequenceBiasLogitsProcessor({(t,): b for t, b in BIASES.items()}))
    np.testing.assert_array_equal(adjusted(logits, request(logit_bias=BIASES))[0], wanted)


@pytest.mark.parametrize("count", [0, 2, 3, 4])
def test_min_new_tokens(count: int) -> None:
    logits, eos = random_logits(1), [7, 40]
    wanted = processed(logits[0], (1,) * (2 + count), theirs.MinNewTokensLengthLogitsProcessor(2, 3, eos))
    found = adjusted(logits, request((1,) * count, (1, 1), eos, min_new_tokens=3))
    np.testing.assert_array_equal(found[0], wanted)
    assert np.isneginf(found[0, 7]) == (count < 3)


def test_stop_ids_are_held_back_too() -> None:
    found = adjusted(random_logits(1), request(eos=[7], stop_token_ids=(9,), min_new_tokens=1, ignore_eos=True))
    assert np.flatnonzero(np.isneginf(found[0])).tolist() == [9]  # what is ignored ends nothing


def test_presence_and_frequency_follow_openai() -> None:
    """mu[j] − c[j] · frequency − (c[j] > 0) · presence, where c counts what was sampled, and not the prompt."""
    logits, generated = random_logits(1), (4, 4, 9, 4)
    found = adjusted(logits, request(generated, (4, 30), presence_penalty=0.5, frequency_penalty=0.25))
    wanted = logits[0].copy()
    wanted[4] -= 0.5 + 3 * 0.25
    wanted[9] -= 0.5 + 0.25
    np.testing.assert_allclose(found[0], wanted)


def test_all_of_them_in_transformers_order() -> None:
    """A bias can turn the sign that a penalty looks at."""
    logits, prompt, generated, eos = random_logits(1), (17, 5, 0), (17, 9), [0, 9]
    chain = [
        theirs.SequenceBiasLogitsProcessor({(t,): b * 3 for t, b in BIASES.items()}),
        theirs.RepetitionPenaltyLogitsProcessor(1.7),
        theirs.MinNewTokensLengthLogitsProcessor(3, 4, eos),
    ]
    wanted = processed(logits[0], prompt + generated, *chain)
    options = {"logit_bias": {t: b * 3 for t, b in BIASES.items()}, "repetition_penalty": 1.7, "min_new_tokens": 4}
    np.testing.assert_array_equal(adjusted(logits, request(generated, prompt, eos, **options))[0], wanted)


def test_each_row_has_its_own() -> None:
    logits = random_logits(4)
    requests = [
        request((1, 2), repetition_penalty=1.5),
        request(),
        request((3,), presence_penalty=1.0, logit_bias=BIASES),
        request(eos=[4], min_new_tokens=2),
    ]
    together = adjusted(logits, *requests)
    for row, each in enumerate(requests):
        np.testing.assert_array_equal(together[row], adjusted(logits[row : row + 1], each)[0])
    np.testing.assert_array_equal(together[1], logits[1])


def test_tokens_outside_the_vocabulary_have_no_effect() -> None:
    """Models exist whose embedding has more tokens than their head."""
    logits = random_logits(1)
    beyond = request((VOCABULARY,), (VOCABULARY + 9,), [VOCABULARY], repetition_penalty=2.0, presence_penalty=1.0,
                     logit_bias={VOCABULARY + 1: 5.0}, min_new_tokens=3)  # fmt: skip
    np.testing.assert_array_equal(adjusted(logits, beyond), logits)


def test_counts_are_kept_up() -> None:
    generator, generated = np.random.default_rng(0), []
    prompt = generator.integers(0, 40, size=30).tolist()
    counts = TokenCounts(prompt, generated)
    for _ in range(60):
        generated += generator.integers(0, 90, size=generator.integers(0, 3)).tolist()
        found = dict(zip(counts.tokens.tolist(), counts.counts.tolist(), strict=True))
        assert found == {token: generated.count(token) for token in {*prompt, *generated}}
