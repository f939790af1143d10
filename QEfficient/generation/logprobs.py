"""Log-probabilities: of the model's own logits, before biases, penalties, masks, temperature and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from QEfficient.generation.shortlist import best_first, loose_bounds

TOGETHER = 32
"""Rows that are worked on at once: a prompt has thousands."""


@dataclass(frozen=True)
class TokenLogprob:
    """What the model thought of one token where it stands: natural logarithms, the softmax of its raw logits."""

    token: int
    logprob: float
    rank: int
    """1 for the likeliest."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, best first."""

    def with_top(self, count: int) -> TokenLogprob:
        """The same with fewer of the likeliest."""
        return self if len(self.top) <= count else replace(self, top=self.top[:count])


def token_logprobs(logits: np.ndarray, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Records of one token per row of `logits` [rows, vocabulary], each with the `top` likeliest ones."""
    found = []
    for start in range(0, len(tokens), TOGETHER):
        some = slice(start, start + TOGETHER)
        found += _records(logits[some], np.array(tokens[some], np.int64), top)
    return found


def _records(logits: np.ndarray, tokens: np.ndarray, top: int) -> list[TokenLogprob]:
    best = logits.max(axis=-1, keepdims=True)
    normaliser = best[:, 0] + np.log(np.exp(logits - best).sum(axis=-1).astype(np.float64))
    own = np.take_along_axis(logits, tokens[:, None], axis=-1)
    ranks = (logits > own).sum(axis=-1) + 1
    likeliest = _likeliest(logits, normaliser, top)
    columns = (tokens.tolist(), (own[:, 0] - normaliser).tolist(), ranks.tolist(), likeliest)
    return [TokenLogprob(*record) for record in zip(*columns, strict=True)]


def _likeliest(logits: np.ndarray, normaliser: np.ndarray, top: int) -> list[tuple[tuple[int, float], ...]]:
    if not top:
        return [()] * len(logits)
    scores, tokens = best_first(logits, loose_bounds(logits, np.full(len(logits), top)))
    logprobs = scores[:, :top] - normaliser[:, None]
    rows = zip(tokens[:, :top].tolist(), logprobs.tolist(), strict=True)
    return [tuple(pair for pair in zip(ids, values, strict=True) if pair[1] > -np.inf) for ids, values in rows]
