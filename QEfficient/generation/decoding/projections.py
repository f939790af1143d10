"""Projections: the program itself guesses the tokens behind the next one, in the same run, and that is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from QEfficient.devices import Session
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.adaptive import Offer
from QEfficient.generation.decoding.speculation import Drafts, Speculation
from QEfficient.generation.plan import Plan, Step
from QEfficient.generation.request import Request


class ProjectionDrafts(Speculation):
    """Tries what the session's own program guessed when it ran last. All of it each time: such a program computes as
    many tokens whether or not there is something to try."""

    def __init__(self, session: Session) -> None:
        if not session.limits.guesses:
            raise OptionError(
                "the program guesses no tokens. Load the model with qaic_config={'speculative_model_type': 'turbo'},"
                " for which its checkpoint needs projections."
            )
        super().__init__(session.limits.guesses, adaptive=False)
        self._session = session
        self._guessed: WeakKeyDictionary[Request, tuple[int, Sequence[int]]] = WeakKeyDictionary()
        """With the length of the request that they follow."""

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        accepted = super().accept(plan, logits)
        guesses = self._session.guesses
        assert guesses is not None and len(guesses) == len(logits)
        tokens = dict(zip(plan.sampled, accepted, strict=True))
        end = 0
        for step in plan.steps:
            end += step.row.logits
            found = tokens.get(step.request, ())
            if found:  # the last token came from the line that stands so far behind that of the last one known
                line = end - 1 - step.drafts + len(found) - 1
                self._guessed[step.request] = step.request.length + len(found), guesses[line].tolist()
        return accepted

    def _offers(self, steps: Sequence[Step]) -> list[Offer]:
        return [Offer(step.request, min(step.room, len(self._guesses(step.request)))) for step in steps]

    def _draft(self, wanted: Mapping[Request, int]) -> Drafts:
        return {request: self._guesses(request)[:count] for request, count in wanted.items()}

    def _guesses(self, request: Request) -> Sequence[int]:
        length, guesses = self._guessed.get(request, (0, ()))
        return guesses if length == request.length else ()
