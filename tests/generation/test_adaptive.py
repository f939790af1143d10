"""How many drafts are tried, on devices and texts made up for it. Time passes as the device says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from QEfficient.generation.decoding.adaptive import AdaptiveLength, Offer, Outcome
from QEfficient.generation.decoding.step_seconds import Curve, StepSeconds
from QEfficient.generation.request import Request

Cost = Callable[[int], float]
DEVICES: dict[str, Cost] = {
    "free": lambda tokens: 1.0,
    "slope": lambda tokens: 1.0 + 0.1 * (tokens - 1),
    "steep": lambda tokens: float(tokens),
    "tiles": lambda tokens: 1.0 + 0.05 * tokens + 0.8 * ((tokens - 1) // 8),
    "leap": lambda tokens: 1.0 if tokens == 1 else 2.5 + 0.01 * tokens,
}


class Decoder:
    """Decodes texts of which it is said how often drafts are right."""

    def __init__(self, cost: Cost, noise: float = 0.0, rows: int = 1, draft_cost: float = 0.0) -> None:
        self.lengths = AdaptiveLength()
        self.requests = [Request((1,)) for _ in range(rows)]
        self._cost, self._noise, self._draft_cost = cost, noise, draft_cost
        self._random = random.Random(0)
        self.drafted = 0

    def rate(self, right: Callable[[], float], steps: int, offered: int = 16) -> float:
        """Tokens a second, as a multiple of plain decoding."""
        tokens, seconds = 0, 0.0
        for _ in range(steps):
            offers = [Offer(request, offered) for request in self.requests]
            counts = self.lengths.choose(offers, len(offers))
            outcomes = [self._outcome(o, n, right()) for o, n in zip(offers, counts, strict=True) if n]
            took = self._cost(len(offers) + sum(counts)) * self._slowness()
            if outcomes:
                self.lengths.record_drafting(max(counts), max(counts) * self._draft_cost)
            self.lengths.record(len(offers), outcomes, took)
            self.drafted += sum(counts)
            tokens += len(offers) + sum(outcome.right for outcome in outcomes)
            seconds += took + max(counts) * self._draft_cost
        return tokens / seconds / (len(self.requests) / self._cost(len(self.requests)))

    def _slowness(self) -> float:
        disturbed = 4.0 if self._noise and self._random.random() < 0.02 else 1.0
        return disturbed * self._random.uniform(1 - self._noise, 1 + self._noise)

    def _outcome(self, offer: Offer, drafts: int, rate: float) -> Outcome:
        right = next((n for n in range(drafts) if self._random.random() >= rate), drafts)
        return Outcome(offer, drafts, right, right < drafts)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("cost", DEVICES.values(), ids=DEVICES)
def test_little_is_lost_where_drafts_are_wrong(cost: Cost, rate: float, rows: int) -> None:
    assert Decoder(cost, rows=rows).rate(lambda: rate, 400) > 0.97


@pytest.mark.parametrize("cost", DEVICES.values(), ids=DEVICES)
def test_little_is_lost_with_a_useless_draft_model(cost: Cost) -> None:
    assert Decoder(cost, draft_cost=0.3).rate(lambda: 0.0, 400) > 0.96


@pytest.mark.parametrize(
    ("device", "least"), [("free", 9.0), ("slope", 4.5), ("steep", 0.97), ("tiles", 3.5), ("leap", 3.5)]
)
def test_much_is_gained_where_drafts_are_right(device: str, least: float) -> None:
    assert Decoder(DEVICES[device]).rate(lambda: 0.99, 400) > least


@pytest.mark.parametrize(("device", "least"), [("free", 1.75), ("slope", 1.4), ("steep", 0.97), ("tiles", 1.5)])
def test_some_is_gained_where_half_are_right(device: str, least: float) -> None:
    assert Decoder(DEVICES[device]).rate(lambda: 0.5, 400) > least


def test_noise_costs_little() -> None:
    assert Decoder(DEVICES["slope"], noise=0.1).rate(lambda: 0.0, 1000) > 0.9  # disturbances alone take 0.06
    assert Decoder(DEVICES["slope"], noise=0.1).rate(lambda: 0.99, 400) > 4.0


def test_texts_that_change_are_followed() -> None:
    decoder = Decoder(DEVICES["slope"])
    assert decoder.rate(lambda: 0.0, 300) > 0.97
    assert decoder.rate(lambda: 0.99, 100) > 3.5
    assert decoder.rate(lambda: 0.0, 300) > 0.96
    assert decoder.rate(lambda: 0.99, 100) > 3.5


def test_a_request_does_not_pay_for_another() -> None:
    """Of two, one is always right and the other never."""
    decoder = Decoder(DEVICES["slope"], rows=2)
    counts = []
    for _ in range(300):
        offers = [Offer(request, 8) for request in decoder.requests]
        counts.append(decoder.lengths.choose(offers, 2))
        outcomes = [
            Outcome(offer, n, n if place == 0 else 0, place == 1)
            for place, (offer, n) in enumerate(zip(offers, counts[-1], strict=True))
            if n
        ]
        decoder.lengths.record(2, outcomes, DEVICES["slope"](2 + sum(counts[-1])))
    first, second = zip(*counts[100:], strict=True)
    assert sum(first) > 7 * 190 and sum(second) < 40


def test_kinds_are_told_apart() -> None:
    """A new request starts from what is usual for its kind of drafts."""
    lengths = AdaptiveLength()
    for _ in range(200):
        request = Request((1,))
        for kind, right in ((2, 0), (8, 4)):
            lengths.record(1, [Outcome(Offer(request, 4, kind), 4, right, right == 0)], 1.0)
    assert lengths.usual(2) < 0.05 and lengths.usual(8) > 0.9


def test_a_step_without_drafts_comes_first_and_again() -> None:
    """What drafts cost is known only beside what they replace."""
    lengths, request = AdaptiveLength(), Request((1,))
    chosen = []
    for _ in range(200):
        (count,) = lengths.choose([Offer(request, 4)], 1)
        chosen.append(count)
        outcomes = [Outcome(Offer(request, 4), count, count, False)] if count else []
        lengths.record(1, outcomes, 1.0)
    assert chosen[:4] == [0, 0, 0, 1] and max(chosen[:12]) == 4
    assert 1 <= chosen[12:].count(0) <= 3


def test_nothing_on_offer_costs_nothing() -> None:
    assert AdaptiveLength().choose([], 3) == []


def test_seconds_of_steps() -> None:
    steps = StepSeconds()
    for seconds in (9.0, 1.0):  # the first of a size is left out
        steps.record(1, seconds)
        steps.record(5, 2 * seconds)
    assert steps.plain(1) is None
    steps.record(1, 30.0)
    assert steps.plain(1) == 1.0  # the lower of two
    curve = steps.curve()
    assert (curve.at(1), curve.at(3), curve.at(5), curve.at(9)) == (1.0, 1.5, 2.0, 2.0)
    assert curve.reach == 10
    for _ in range(70):
        steps.record(5, 2.0)
    assert steps.plain(1) is None and steps.curve().at(1) == 1.0


def test_fewer_tokens_never_take_more() -> None:
    """What was disturbed is known from larger steps that were not."""
    steps = StepSeconds()
    for _ in range(3):
        steps.record(2, 9.0)
        steps.record(4, 1.0)
    assert steps.curve().at(2) == steps.curve().at(3) == 1.0


def test_what_is_old_is_forgotten() -> None:
    steps = StepSeconds()
    for _ in range(3):
        steps.record(2, 9.0)
        steps.record(1, 1.0)
    assert steps.curve().at(2) == 9.0
    for _ in range(200):
        steps.record(1, 1.0)
    assert steps.curve().at(2) == 1.0
    steps.record(2, 1.5)
    assert steps.curve().at(2) == 1.5


def test_one_size_is_all_that_is_known() -> None:
    assert Curve([4], [2.0]).at(1) == Curve([4], [2.0]).at(8) == 2.0
