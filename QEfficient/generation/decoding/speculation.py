"""What all decodings have in common that try tokens ahead: how many to try, and what came of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from QEfficient.errors import OptionError
from QEfficient.generation.decoding.adaptive import AdaptiveLength, Offer, Outcome
from QEfficient.generation.decoding.verification import Verification
from QEfficient.generation.plan import Plan, Step, extended
from QEfficient.generation.request import Request

Drafts = Mapping[Request, Sequence[int]]


@dataclass
class _Trying:
    """The step that runs now."""

    started: float
    only_ends: bool = False
    """Whether nothing but the last token of each request runs, and drafts."""
    drafting: float = 0.0
    """Seconds of it in which drafts were made."""
    offers: dict[Request, Offer] = field(default_factory=dict)


class Speculation(ABC):
    """Extends rows by drafts. Which ones changes how fast tokens come, never which tokens come."""

    def __init__(
        self, lookahead: int, *, adaptive: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`lookahead`: most drafts of a row. Without `adaptive` as many are tried as there are."""
        if not isinstance(lookahead, int) or isinstance(lookahead, bool) or lookahead < 1:
            raise OptionError(f"the number of tokens to try ahead must be a positive whole number, not {lookahead!r}.")
        self.lookahead = lookahead
        self._verification = Verification()
        self._lengths = AdaptiveLength() if adaptive else None
        self._clock = clock
        self._trying = _Trying(0.0)

    @abstractmethod
    def _offers(self, steps: Sequence[Step]) -> Sequence[Offer]:
        """How many drafts can be had for some rows that have room."""

    @abstractmethod
    def _draft(self, wanted: Mapping[Request, int]) -> Drafts:
        """So many drafts for each of some requests; fewer or none will do."""

    def _settle(self, request: Request, kept: int) -> None:  # noqa: B027
        """Take note of how many tokens the request gets in a step in which it had drafts: for those who care."""

    def propose(self, plan: Plan) -> Plan:
        """Drafts are tried where nothing but the last token of each request runs: beside prompts they gain little."""
        self._trying = _Trying(self._clock(), _only_ends(plan))
        open_steps = [step for step in plan.steps if step.room] if self._trying.only_ends else []
        if not open_steps:
            return plan
        offers = [offer for offer in self._offers(open_steps) if offer.length > 0]
        lengths = self._chosen(offers, len(plan.steps))
        wanted = {offer.request: length for offer, length in zip(offers, lengths, strict=True) if length}
        if not wanted:
            return plan
        drafts = self._drafted(wanted)
        self._trying.offers = {offer.request: offer for offer in offers if drafts.get(offer.request)}
        return replace(plan, steps=tuple(extended(s, drafts.get(s.request, ())) for s in plan.steps))

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        accepted = self._verification.accept(plan, logits)
        trying, self._trying = self._trying, _Trying(0.0)  # nothing is kept of requests that may have ended
        outcomes = self._outcomes(plan, accepted, trying.offers) if trying.offers else []
        if self._lengths is not None and trying.only_ends:
            self._lengths.record(len(plan.steps), outcomes, self._clock() - trying.started - trying.drafting)
        return accepted

    def _chosen(self, offers: Sequence[Offer], rows: int) -> list[int]:
        if self._lengths is None:
            return [offer.length for offer in offers]
        return self._lengths.choose(offers, rows)

    def _drafted(self, wanted: Mapping[Request, int]) -> Drafts:
        started = self._clock()
        drafts = self._draft(wanted)
        self._trying.drafting = self._clock() - started
        rounds = max(map(len, drafts.values()), default=0)
        if self._lengths is not None and rounds:
            self._lengths.record_drafting(rounds, self._trying.drafting)
        return drafts

    def _outcomes(
        self, plan: Plan, accepted: Sequence[Sequence[int]], offers: Mapping[Request, Offer]
    ) -> list[Outcome]:
        tokens = dict(zip(plan.sampled, accepted, strict=True))
        outcomes = []
        for step in (step for step in plan.steps if step.drafts):
            found = tokens[step.request]
            self._settle(step.request, len(found))
            drafts = step.row.tokens[-step.drafts :]
            wrong = len(found) <= len(drafts) and bool(found) and found[-1] != drafts[len(found) - 1]
            outcomes.append(Outcome(offers[step.request], step.drafts, max(len(found) - 1, 0), wrong))
        return outcomes


def _only_ends(plan: Plan) -> bool:
    return all(len(step.row.tokens) == 1 and step.row.start + 1 == step.request.length for step in plan.steps)
