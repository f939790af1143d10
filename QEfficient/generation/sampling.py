"""The next token of each row: adjustments, filters, and one random number.

A greedy request without adjustments never enters the chain: its token is the plain argmax. The others are worked on as
arrays `[rows, vocabulary]`; what happens to a row follows from that row, its request and the request's own randomness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from QEfficient.errors import DeviceError
from QEfficient.generation.adjustments import ADJUSTMENTS, Adjustment
from QEfficient.generation.request import Request
from QEfficient.generation.shortlist import Settings, Shortlist, shortlist

STRIDE = 512
CACHED = 2**19
"""So many scores are worked on at once: what is made of more does not stay in a processor's cache."""
IMPOSSIBLE = -1


def sample(
    logits: np.ndarray, requests: Sequence[Request], adjustments: Sequence[Adjustment] = ADJUSTMENTS
) -> list[int | None]:
    """One token per row of `logits` [rows, vocabulary]; None where a request's mask lets nothing come next."""
    return choose(logits, likeliest(logits), np.arange(len(requests)), requests, adjustments)


def likeliest(logits: np.ndarray) -> np.ndarray:
    """The best token of each row, before anything is done to it."""
    tokens: np.ndarray = np.argmax(logits, axis=-1)
    if not np.isfinite(np.take_along_axis(logits, tokens[:, None], axis=-1)).all():  # argmax finds a NaN first
        raise DeviceError("the device returned logits that are no finite numbers.")
    return tokens


def choose(
    logits: np.ndarray,
    best: np.ndarray,
    rows: np.ndarray,
    requests: Sequence[Request],
    adjustments: Sequence[Adjustment] = ADJUSTMENTS,
) -> list[int | None]:
    """As `sample`, each request from the row that `rows` names, in ascending order; `best` are the `likeliest`."""
    tokens = best[rows]
    adjusted = [n for n, request in enumerate(requests) if any(link.concerns(request) for link in adjustments)]
    drawn = {n for n, request in enumerate(requests) if not request.params.greedy}
    _draw_into(tokens, sorted(drawn - set(adjusted)), logits, rows, requests)
    if not adjusted:
        return [int(token) for token in tokens]
    scores = logits[rows[adjusted]].astype(np.float32, copy=False)  # indexing copies: the adjustments may write
    some, all_rows = [requests[n] for n in adjusted], np.arange(len(adjusted))
    _adjust(scores, some, adjustments)
    chosen = np.argmax(scores, axis=-1)
    possible = np.isfinite(np.take_along_axis(scores, chosen[:, None], axis=-1))[:, 0]
    _draw_into(chosen, [n for n, at in enumerate(adjusted) if at in drawn and possible[n]], scores, all_rows, some)
    tokens[adjusted] = np.where(possible, chosen, IMPOSSIBLE)
    return [int(token) if token != IMPOSSIBLE else None for token in tokens]


def _adjust(scores: np.ndarray, requests: Sequence[Request], adjustments: Sequence[Adjustment]) -> None:
    for link in adjustments:
        rows = [row for row, request in enumerate(requests) if link.concerns(request)]
        if rows:
            link.apply(scores, rows, [requests[row] for row in rows])


def _draw_into(
    tokens: np.ndarray, some: list[int], scores: np.ndarray, rows: np.ndarray, requests: Sequence[Request]
) -> None:
    if some:
        tokens[some] = draw(pick_rows(scores, rows[some]), [requests[n] for n in some])


def draw(scores: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """A token for each row, by its filters; each takes one number from its request's generator."""
    settings = Settings.of([request.params for request in requests])
    shares = np.array([request.random.random() for request in requests])
    narrowing = settings.narrowing(scores.shape[-1])
    tokens = np.empty(len(requests), np.int64)
    together = max(CACHED // scores.shape[-1], 1)
    for rows, method in ((np.flatnonzero(narrowing), _draw_narrowed), (np.flatnonzero(~narrowing), _draw_from_all)):
        for start in range(0, rows.size, together):
            some = rows[start : start + together]
            tokens[some] = method(pick_rows(scores, some), settings[some], shares[some])
    return tokens


def pick_rows(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows, in ascending order; nothing is copied if they follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    return scores[first : last + 1] if last - first + 1 == rows.size else scores[rows]


def _draw_narrowed(scores: np.ndarray, settings: Settings, shares: np.ndarray) -> np.ndarray:
    found = shortlist(scores, settings)
    tokens = _draw_listed(found, shares)
    again = found.short
    if again.any():
        tokens[again] = _draw_listed(shortlist(scores[again], settings[again], whole=True), shares[again])
    return tokens


def _draw_listed(found: Shortlist, shares: np.ndarray) -> np.ndarray:
    place, _ = _passing(np.exp(found.scores), shares)
    drawn: np.ndarray = found.tokens[np.arange(len(place)), place]
    return drawn


def _draw_from_all(scores: np.ndarray, settings: Settings, shares: np.ndarray) -> np.ndarray:
    """In two strides, over blocks and in a block: running sums over a whole vocabulary take long."""
    blocks, sums = _blocks(scores, settings.temperature)
    block, left = _passing(sums, shares)
    place, _ = _passing(blocks[np.arange(len(blocks)), block], left)
    return np.asarray(block * STRIDE + place)


def _blocks(scores: np.ndarray, temperature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of every token `[rows, blocks, STRIDE]`, and of every block."""
    rows, width = scores.shape
    weights = np.zeros((rows, -(-width // STRIDE) * STRIDE), np.float32)
    relative = weights[:, :width]
    np.subtract(scores, scores.max(axis=-1, keepdims=True), out=relative)
    relative /= temperature[:, None].astype(np.float32)
    np.exp(relative, out=relative)
    blocks = weights.reshape(rows, -1, STRIDE)
    return blocks, blocks.sum(axis=-1)


def _passing(weights: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the running sum of each row passes a share (below 1) of its total, and the share of that weight passed."""
    sums = np.cumsum(weights, axis=-1, dtype=np.float64)
    target = shares * sums[:, -1]
    place = (sums <= target[:, None]).sum(axis=-1)
    rows = np.arange(len(place))
    before = np.where(place > 0, sums[rows, place - 1], 0.0)
    return place, np.minimum((target - before) / (sums[rows, place] - before), np.nextafter(1.0, 0.0))
