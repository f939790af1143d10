"""The next token of each row: a chain of small functions over logits, then a draw.

Each link takes logits `[rows, vocabulary]` and the requests of those rows, and returns logits. A greedy request without
penalties never enters the chain: its token is the plain argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from QEfficient.errors import DeviceError
from QEfficient.generation.request import Request
from QEfficient.specs import SamplingParams

STRIDE = 512

Link = Callable[[np.ndarray, Sequence[Request]], np.ndarray]


def penalties(logits: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Repetition (prompt and generated tokens), presence and frequency (generated tokens)."""
    for row, request in zip(logits, requests, strict=True):
        params = request.params
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.array(request.prompt + tuple(request.generated)))
            scores = row[seen]
            row[seen] = np.where(scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty)
        if request.generated and (params.presence_penalty or params.frequency_penalty):
            tokens, counts = np.unique(np.array(request.generated), return_counts=True)
            row[tokens] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def temperature(logits: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Divide by the temperature. Greedy rows stay: their order is what counts."""
    divisors = np.array([[request.params.temperature or 1.0] for request in requests], np.float32)
    return np.asarray(logits / divisors)


def top_k(logits: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Only the k best (and what ties with the last of them)."""
    for row, request in zip(logits, requests, strict=True):
        k = request.params.top_k
        if 0 < k < row.size:
            row[row < np.partition(row, -k)[-k]] = -np.inf
    return logits


def top_p(logits: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Only the fewest best whose probabilities reach p (and what ties with the last of them)."""
    for row, request in zip(logits, requests, strict=True):
        if request.params.top_p < 1.0:
            alive = np.sort(row[np.isfinite(row)])
            mass = np.cumsum(_weights(alive))
            cut = np.searchsorted(mass, (1.0 - request.params.top_p) * mass[-1], side="right")
            row[row < alive[min(cut, alive.size - 1)]] = -np.inf
    return logits


def min_p(logits: np.ndarray, requests: Sequence[Request]) -> np.ndarray:
    """Only those at least `min_p` times as likely as the best."""
    for row, request in zip(logits, requests, strict=True):
        if request.params.min_p > 0.0:
            row[row < row.max() + np.log(request.params.min_p)] = -np.inf
    return logits


CHAIN: tuple[Link, ...] = (penalties, temperature, top_k, top_p, min_p)


def sample(logits: np.ndarray, requests: Sequence[Request], chain: Sequence[Link] = CHAIN) -> list[int]:
    """One token per row of `logits` [rows, vocabulary]."""
    tokens = np.argmax(logits, axis=-1)
    if not np.isfinite(np.take_along_axis(logits, tokens[:, None], axis=-1)).all():  # argmax finds a NaN first
        raise DeviceError("the device returned logits that are no finite numbers.")
    rows = [index for index, request in enumerate(requests) if not _plain(request.params)]
    if rows:
        chosen = [requests[index] for index in rows]
        shaped = logits[rows].astype(np.float32)  # indexing copies: the chain may write
        for link in chain:
            shaped = link(shaped, chosen)
        tokens[rows] = [_draw(row, request) for row, request in zip(shaped, chosen, strict=True)]
    return [int(token) for token in tokens]


def _plain(params: SamplingParams) -> bool:
    penalised = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return params.greedy and not penalised


def _weights(logits: np.ndarray) -> np.ndarray:
    """Probabilities but for their common factor, exact enough to be summed."""
    return np.asarray(np.exp(logits - logits.max()), np.float64)


def _draw(logits: np.ndarray, request: Request) -> int:
    """One number from the request's own generator per token, whatever the other rows do."""
    if request.params.greedy:
        return int(np.argmax(logits))
    alive = np.flatnonzero(np.isfinite(logits))
    return int(alive[_passing(_weights(logits[alive]), request.random.random())])


def _passing(weights: np.ndarray, share: float) -> int:
    """Where the running sum passes a share of the total. In two strides: over a whole vocabulary it takes long."""
    starts = np.arange(0, weights.size, STRIDE)
    sums = np.cumsum(np.add.reduceat(weights, starts))
    rest = share * sums[-1]
    block = int(np.searchsorted(sums[:-1], rest, side="right"))
    within = weights[block * STRIDE : (block + 1) * STRIDE]
    rest -= sums[block - 1] if block else 0.0
    return block * STRIDE + int(np.searchsorted(np.cumsum(within)[:-1], rest, side="right"))
