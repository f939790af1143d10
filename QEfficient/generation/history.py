"""The tokens of a request, each once: kept up token by token, so that no step reads the whole history again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenCounts:
    """Which tokens a prompt and its answer have, and how often the answer has each."""

    def __init__(self, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """`generated` grows behind our back; what is new of it is read when somebody asks."""
        seen = dict.fromkeys(prompt)
        self._place = {token: place for place, token in enumerate(seen)}
        self._tokens = np.array(list(seen), np.int64)
        self._counts = np.zeros(len(seen), np.int64)
        self._of_prompt = len(seen)
        self._generated = generated
        self._read = 0

    @property
    def tokens(self) -> np.ndarray:
        """Every token of prompt and answer."""
        self._read_on()
        return self._tokens[: len(self._place)]

    @property
    def counts(self) -> np.ndarray:
        """How often the answer has each of `tokens`."""
        self._read_on()
        return self._counts[: len(self._place)]

    def shorten(self, length: int) -> None:
        """Take note, before it happens, that `generated` loses what is behind its first `length` tokens."""
        for token in reversed(self._generated[length : self._read]):
            place = self._place[token]
            self._counts[place] -= 1
            if not self._counts[place] and place >= self._of_prompt:
                del self._place[token]  # the last place: what came later went before
        self._read = min(self._read, length)

    def _read_on(self) -> None:
        for token in self._generated[self._read :]:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._tokens):
                self._grow()
            self._tokens[place] = token
            self._counts[place] += 1
        self._read = len(self._generated)

    def _grow(self) -> None:
        room = np.zeros(max(len(self._tokens), 16), np.int64)
        self._tokens = np.concatenate([self._tokens, room])
        self._counts = np.concatenate([self._counts, room])
