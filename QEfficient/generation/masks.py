"""Token masks: which tokens a grammar lets come next, as bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from QEfficient.specs import SamplingParams


class TokenMask(Protocol):
    """What a request may say next. One object belongs to one request and may keep state.

    The bits are those of xgrammar and llguidance: token `i` is bit `i % 32` of word `i // 32`, int32 or uint32
    `[ceil(vocabulary / 32)]` (uint8 in little-endian order will do too). Tokens beyond the last word are forbidden.
    """

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        """The tokens that may follow `generated`, which grows from call to call; what is new, a grammar accepts first.

        The array is read before the next call and never written. If no bit is set, the request ends: `exhausted`.
        """


def packed(tokens: Iterable[int]) -> np.ndarray:
    """The bits of some tokens."""
    ids = np.array(sorted(set(tokens)), np.int64)
    words = np.zeros(int(ids[-1]) // 32 + 1 if ids.size else 0, np.uint32)
    np.bitwise_or.at(words, ids // 32, np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32)))
    return words


def unpacked(masks: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """Masks as booleans `[masks, vocabulary]`."""
    raw = [np.ascontiguousarray(mask).view(np.uint8) for mask in masks]
    rows = np.zeros((len(raw), -(-vocabulary // 8)), np.uint8)
    for row, found in zip(rows, raw, strict=True):
        row[: found.size] = found[: row.size]
    return np.unpackbits(rows, axis=-1, count=vocabulary, bitorder="little").view(np.bool_)


class OneOf:
    """Lets a request say one of some token sequences, and then one of the tokens that end it."""

    def __init__(self, sequences: Iterable[Sequence[int]], end_ids: Iterable[int] = ()) -> None:
        self._sequences = tuple(tuple(sequence) for sequence in sequences)
        self._end_ids = tuple(end_ids)

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        said, count = tuple(generated), len(generated)
        following = {s[count] for s in self._sequences if s[:count] == said and len(s) > count}
        return packed(following | set(self._end_ids if said in self._sequences else ()))


class Always:
    """Lets the same tokens come next at every step."""

    def __init__(self, allowed: np.ndarray) -> None:
        """`allowed`: a boolean for each token."""
        self._bits = np.packbits(np.asarray(allowed, np.bool_), bitorder="little")

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        return self._bits


@dataclass(frozen=True)
class MaskedParams(SamplingParams):
    """How one prompt's tokens are chosen, where that includes which tokens there are to choose among."""

    mask: Always | None = field(default=None, compare=False)
    """Without a memory, so all answers to the prompt may share it."""
