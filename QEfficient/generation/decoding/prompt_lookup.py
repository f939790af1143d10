"""Prompt lookup: where the last tokens stood before, what followed them then is tried now.

For texts that repeat themselves or their prompt: summaries, edits of code, extracts. It costs no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from weakref import WeakKeyDictionary

from QEfficient.generation.decoding.adaptive import Offer
from QEfficient.generation.decoding.speculation import Drafts, Speculation
from QEfficient.generation.plan import Step
from QEfficient.generation.request import Request

LOOKAHEAD = 16
PLACES = 8
"""So many of the last places where the last two tokens stood are looked at."""
KINDS = (2, 3, 4, 8)
"""How many tokens agree: the more, the likelier what follows."""
NOWHERE = -1


class TokenIndex:
    """Where each pair of tokens stood. A new token takes constant time, and so does a search."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, int], int] = {}
        self._before: list[int] = []
        """For each token, where it stood before with the same one in front of it."""
        self._found = NOWHERE

    def read(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            place = len(self.tokens)
            pair = (self.tokens[-1] if place else NOWHERE, token)
            self._before.append(self._last.get(pair, NOWHERE))
            self._last[pair] = place
            self.tokens.append(token)

    def find(self) -> int:
        """Find where the last tokens stood before: the longest agreement, of equals the latest. Returns its length."""
        longest = 0
        place = self._before[-1] if len(self.tokens) > 1 else NOWHERE
        for _ in range(PLACES):
            if place <= 0 or longest == KINDS[-1]:
                break
            agreeing = self._agreement(place)
            if agreeing > longest:
                self._found, longest = place, agreeing
            place = self._before[place]
        return longest

    def following(self, count: int) -> list[int]:
        """So many tokens that followed there; if the end comes first, it goes on in the same way."""
        start = self._found + 1
        period = len(self.tokens) - start
        return [self.tokens[start + number % period] for number in range(count)]

    def _agreement(self, place: int) -> int:
        """How many tokens up to a place are the last ones, of which two are known to be."""
        count, tokens = 2, self.tokens
        while count < KINDS[-1] and count <= place and tokens[place - count] == tokens[-1 - count]:
            count += 1
        return count


class PromptLookup(Speculation):
    """Tries what followed the same tokens before, in the prompt or in the answer."""

    def __init__(
        self, lookahead: int = LOOKAHEAD, *, adaptive: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(lookahead, adaptive=adaptive, clock=clock)
        self._indices: WeakKeyDictionary[Request, TokenIndex] = WeakKeyDictionary()

    def _offers(self, steps: Sequence[Step]) -> list[Offer]:
        offers = []
        for step in steps:
            agreeing = self._index(step.request).find()
            if agreeing:
                kind = max(kind for kind in KINDS if kind <= agreeing)
                offers.append(Offer(step.request, step.room, kind))
        return offers

    def _draft(self, wanted: Mapping[Request, int]) -> Drafts:
        return {request: self._indices[request].following(count) for request, count in wanted.items()}

    def _index(self, request: Request) -> TokenIndex:
        index = self._indices.get(request)
        if index is None:
            index = self._indices[request] = TokenIndex()
        index.read(request.tokens_from(len(index.tokens), request.length - len(index.tokens)))
        return index
