"""How many drafts are worth their time: hardly any where they are mostly wrong, or where tokens cost time.

Two things are learnt: how often drafts are right, of each request and of each kind of draft; and how long steps of so
many tokens take. From both follows how many drafts bring the most tokens a second. As that is a guess, an account is
kept of what drafts have saved and lost, in plain steps. It starts with little and earns little; what is tried must be
paid from it, or promise more than it costs and than is owed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from QEfficient.generation.decoding.step_seconds import Recent, StepSeconds
from QEfficient.generation.request import Request

COUNTS = frozenset({1, 2, 3, 4, 6, 8, *range(12, 33, 4), *range(40, 65, 8), *range(80, 1025, 16)})
"""How many drafts a step may have: few sizes of steps are measured well rather than many badly."""
FIRST_RATE, LEAST_RATE, MOST_RATE = 0.5, 0.02, 0.98
OWN_WEIGHT, USUAL_WEIGHT = 0.3, 0.05
"""Of one more draft, in how often those of its request and those of its kind are right."""
GAIN = 1.03
"""How many times the tokens a second of a plain step drafts must promise: measurements are not better than that."""
START, EARNED = 1.0, 0.01
MOST_OWED, MOST_SAVED = -1.0, 4.0
"""Of the account, in plain steps: at first, with each step, and its bounds."""
LEAST_COST = 0.03
"""What a step with drafts is charged at least, in plain steps."""


@dataclass(frozen=True)
class Offer:
    """Drafts that can be had for a request."""

    request: Request
    length: int
    kind: int = 0
    """Those of a kind are right about equally often."""


@dataclass(frozen=True)
class Outcome:
    """What became of the drafts of a request."""

    offer: Offer
    drafts: int
    right: int
    wrong: bool
    """Whether one was found to be wrong; those behind it say nothing."""


class AdaptiveLength:
    """Chooses how many drafts each row gets, and learns from what became of them."""

    def __init__(self) -> None:
        self._own: WeakKeyDictionary[Request, dict[int, float]] = WeakKeyDictionary()
        self._usual: dict[int, float] = {}
        self._steps = StepSeconds()
        self._round = Recent()
        self._account = START

    def usual(self, kind: int = 0) -> float:
        """How often drafts of a kind are right."""
        return self._usual.get(kind, FIRST_RATE)

    def choose(self, offers: Sequence[Offer], rows: int) -> list[int]:
        """How many drafts of each offer to try in a step of so many rows."""
        counts = [0] * len(offers)
        best, plain = counts.copy(), self._steps.plain(rows)
        if plain is None or not offers or not self._might_gain(offers, rows):
            return best
        curve, fastest, expected = self._steps.curve(), GAIN * rows / plain, float(rows)
        for number, (worth, place) in enumerate(self._ranked(offers), 1):
            counts[place] += 1
            expected += worth
            if number not in COUNTS:
                continue
            if rows + number > curve.reach:
                break
            seconds = max(curve.at(rows + number), plain) + self._round.usual * max(counts)
            cost, promised = self._cost(seconds, plain), expected / rows - 1
            # One is tried as often as the account allows, even if it promises nothing: texts change.
            if number == 1 and cost <= self._account:
                best = counts.copy()
            if expected / seconds > fastest and cost - promised <= self._account:
                best, fastest = counts.copy(), expected / seconds
        return best

    def _might_gain(self, offers: Sequence[Offer], rows: int) -> bool:
        """Whether to look closer: not if drafts would not be worth it even for nothing, and none can be afforded."""
        rates = [self._rate(offer) for offer in offers]
        return self._account >= LEAST_COST or sum(rate / (1 - rate) for rate in rates) > (GAIN - 1) * rows

    def record_drafting(self, rounds: int, seconds: float) -> None:
        """Take note of what it took to make drafts, of which the longest needed so many rounds."""
        self._round.add(seconds / rounds)

    def record(self, rows: int, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Take note of a step of so many rows, in which nothing but these drafts ran beside their last tokens."""
        tokens = rows + sum(outcome.drafts for outcome in outcomes)
        self._steps.record(tokens, seconds)
        self._account = min(self._account + EARNED, MOST_SAVED)
        if not outcomes:
            return
        plain = self._steps.plain(rows)
        if plain is not None:
            rounds = max(outcome.drafts for outcome in outcomes)
            cost = self._cost(self._steps.curve().at(tokens) + self._round.usual * rounds, plain)
            self._account += sum(outcome.right for outcome in outcomes) / rows - cost
            self._account = min(max(self._account, MOST_OWED), MOST_SAVED)
        for outcome in outcomes:
            self._learn(outcome)

    @staticmethod
    def _cost(seconds: float, plain: float) -> float:
        return max(seconds / plain - 1, LEAST_COST)

    def _ranked(self, offers: Sequence[Offer]) -> list[tuple[float, int]]:
        """How likely each draft on offer will be kept, and the place of its offer; the likeliest first."""
        worths = []
        for place, offer in enumerate(offers):
            rate = self._rate(offer)
            worths += [(rate**number, place) for number in range(1, offer.length + 1)]
        return sorted(worths, key=lambda worth: -worth[0])

    def _rate(self, offer: Offer) -> float:
        own = self._own.get(offer.request, {}).get(offer.kind)
        return self.usual(offer.kind) if own is None else own

    def _learn(self, outcome: Outcome) -> None:
        offer = outcome.offer
        own = self._own.setdefault(offer.request, {})
        own[offer.kind] = _after(self._rate(offer), outcome, OWN_WEIGHT)
        self._usual[offer.kind] = _after(self.usual(offer.kind), outcome, USUAL_WEIGHT)


def _after(rate: float, outcome: Outcome, weight: float) -> float:
    """How often drafts are right, having seen some more."""
    rate = 1 - (1 - rate) * (1 - weight) ** outcome.right
    if outcome.wrong:
        rate *= 1 - weight
    return min(max(rate, LEAST_RATE), MOST_RATE)
