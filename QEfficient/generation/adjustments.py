"""What changes logits before anything is chosen, in transformers' order: biases, penalties, forbidden tokens.

Each adjustment writes into scores `[rows, vocabulary]`, and only into the rows of the requests that it concerns. What
it does to a row follows from that row and its request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from QEfficient.generation.masks import unpacked
from QEfficient.generation.request import Request

Change = Callable[[np.ndarray, Sequence[int], Sequence[Request]], None]


@dataclass(frozen=True)
class Adjustment:
    """One link of the chain."""

    concerns: Callable[[Request], bool]
    apply: Change
    """Called with the scores, the rows that are concerned (never none), and their requests."""


def add_biases(scores: np.ndarray, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Add `logit_bias`."""
    row, column, bias = _places(scores, rows, [r.bias[0] for r in requests], [r.bias[1] for r in requests])
    scores[row, column] += bias.astype(np.float32)


def penalise_repetition(scores: np.ndarray, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Make every token of prompt and answer less likely: divide positive logits, multiply negative ones."""
    penalties = [np.full(r.counts.tokens.size, r.params.repetition_penalty, np.float32) for r in requests]
    row, column, penalty = _places(scores, rows, [r.counts.tokens for r in requests], penalties)
    found = scores[row, column]
    scores[row, column] = np.where(found < 0, found * penalty, found / penalty)


def penalise_presence(scores: np.ndarray, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Subtract from each token of the answer the presence penalty once, and the frequency penalty for each time."""
    lost = [_lost(request) for request in requests]
    row, column, loss = _places(scores, rows, [r.counts.tokens for r in requests], lost)
    scores[row, column] -= loss


def _lost(request: Request) -> np.ndarray:
    counts, params = request.counts.counts, request.params
    lost = params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    return np.asarray(lost, np.float32)


def forbid_the_end(scores: np.ndarray, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Nothing ends an answer before its `min_new_tokens`."""
    ends = [np.array(sorted(request.end_ids), np.int64) for request in requests]
    row, column, _ = _places(scores, rows, ends, ends)
    scores[row, column] = -np.inf


def apply_masks(scores: np.ndarray, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Forbid what the request's mask does not let come next."""
    found = [request.mask.mask(request.generated) for request in requests if request.mask is not None]
    allowed = unpacked(found, scores.shape[-1])
    if len(rows) == len(scores):
        np.copyto(scores, -np.inf, where=~allowed)
    else:
        scores[rows] = np.where(allowed, scores[rows], -np.inf)


def _places(
    scores: np.ndarray, rows: Sequence[int], tokens: Sequence[np.ndarray], values: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of some tokens of each row, and a value for each. What is outside the vocabulary is left out."""
    row = np.repeat(rows, [len(found) for found in tokens])
    column, value = np.concatenate(tokens), np.concatenate(values)
    inside = column < scores.shape[-1]
    return row[inside], column[inside], value[inside]


ADJUSTMENTS: tuple[Adjustment, ...] = (
    Adjustment(lambda request: bool(request.params.logit_bias), add_biases),
    Adjustment(lambda request: request.params.repetition_penalty != 1.0, penalise_repetition),
    Adjustment(
        lambda r: bool(r.generated) and bool(r.params.presence_penalty or r.params.frequency_penalty),
        penalise_presence,
    ),
    Adjustment(lambda request: len(request.generated) < request.params.min_new_tokens, forbid_the_end),
    Adjustment(lambda request: request.mask is not None, apply_masks),
)
"""In the order of transformers' `generate`."""
