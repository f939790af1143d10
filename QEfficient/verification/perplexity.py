"""Perplexity of a compiled program on a text: what rounding weights or states costs, in one number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from QEfficient.devices import Batch, Row, Session


def perplexity(session: Session, tokens: Sequence[int], window: int, first: int | None = None) -> float:
    """Of `tokens` cut into windows that know nothing of one another; each begins with the token `first` if given."""
    size = window - (first is not None)
    nats, count = 0.0, 0
    for start in range(0, len(tokens), size):
        wanted = list(tokens[start : start + size])
        fed = wanted[:-1] if first is None else [first, *wanted[:-1]]
        targets = wanted[len(wanted) - len(fed) :]
        if fed:
            nats -= float(_log_probabilities(session, fed, targets).sum())
            count += len(targets)
    return math.exp(nats / count)


def _log_probabilities(session: Session, fed: Sequence[int], targets: Sequence[int]) -> np.ndarray:
    found, limits = [], session.limits
    length = min(limits.chunk, limits.logits)
    blocks = range(-(-len(fed) // limits.paging.block_size)) if limits.paging is not None else ()
    for start in range(0, len(fed), length):
        part = fed[start : start + length]
        logits = session.run(Batch((Row(0, part, start, len(part), blocks),)))
        found.append(_of_targets(logits.astype(np.float64), targets[start : start + length]))
    return np.concatenate(found)


def _of_targets(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    largest = logits.max(-1, keepdims=True)
    sums = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
    chosen: np.ndarray = logits[np.arange(len(targets)), list(targets)] - sums
    return chosen
