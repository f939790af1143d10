"""The same requests one by one and in traffic: mixed at random, cancelled, short of room, with and without a cache.

Who shares a batch, what was computed before and what had to give way must not change anybody's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from QEfficient.devices import Session
from QEfficient.generation.decoding.one_token import OneToken
from QEfficient.generation.engine import Engine
from QEfficient.generation.plan import Plan
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Scheduler
from QEfficient.generation.statistics import Statistics
from QEfficient.specs import SamplingParams

COMPANY = 32
"""Most requests in the engine at a time."""
SHARED_BEGINNINGS = 8
CANCELLED = 0.2
"""Part of the requests that come a second time, to be cancelled at some moment."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many tokens it wants."""

    prompt: tuple[int, ...]
    count: int

    def request(self, priority: int = 0) -> Request:
        return Request(self.prompt, SamplingParams(max_new_tokens=self.count, ignore_eos=True), priority=priority)


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and how far before each the best logit was ahead of the second, as a part of the spread."""

    tokens: tuple[int, ...]
    leads: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A request whose tokens are others in traffic."""

    number: int
    position: int
    """Of the first other token."""
    lead: float


def make_requests(count: int, pool: Sequence[int], longest: int, seed: int = 0) -> list[Asked]:
    """Prompts up to `longest` tokens together with what they want; most begin like some others."""
    random = np.random.default_rng(seed)
    beginnings = [random.choice(pool, longest * 3 // 8) for _ in range(SHARED_BEGINNINGS)]
    asked = []
    for _ in range(count):
        shared = beginnings[random.integers(SHARED_BEGINNINGS)][: random.integers(longest * 3 // 8 + 1)]
        own = random.choice(pool, random.integers(1, max(longest // 8, 2)))
        wanted = 1 + int(longest / 2 * random.random() ** 3)  # many short answers, some that outgrow their blocks
        asked.append(Asked(tuple(int(token) for token in (*shared, *own)), wanted))
    return asked


def one_by_one(session: Session, asked: Sequence[Asked]) -> list[Answer]:
    """Each alone, and nothing kept from one to the next."""
    answers = []
    for each in asked:
        decoding = _Leads()
        engine = Engine(session, decoding, Scheduler(session.limits, prefix_cache=False))
        output = engine.generate([each.request()])[0]
        answers.append(Answer(output.generated_ids, tuple(decoding.leads)))
    return answers


def in_traffic(
    session: Session, asked: Sequence[Asked], *, prefix_cache: bool, seed: int = 0
) -> tuple[list[tuple[int, ...]], Statistics]:
    """The tokens of each, and what the engine has done."""
    engine = Engine(session, scheduler=Scheduler(session.limits, prefix_cache=prefix_cache))
    requests = _Arrivals(engine, asked, seed).run()
    return [tuple(request.generated) for request in requests], engine.statistics


def differences(expected: Sequence[Answer], found: Sequence[Sequence[int]]) -> Iterator[Difference]:
    for number, (answer, tokens) in enumerate(zip(expected, found, strict=True)):
        if tuple(tokens) != answer.tokens:
            pairs = zip(answer.tokens, tokens, strict=False)
            same = next((n for n, (one, other) in enumerate(pairs) if one != other), len(tokens))
            lead = answer.leads[same] if same < len(answer.leads) else np.inf
            yield Difference(number, same, lead)


class _Arrivals:
    """Submits requests in random order at random moments, with others between them that are cancelled."""

    def __init__(self, engine: Engine, asked: Sequence[Asked], seed: int) -> None:
        self._engine = engine
        self._random = np.random.default_rng(seed)
        self._requests = [each.request(int(self._random.integers(3))) for each in asked]
        again = self._random.random(len(asked)) < CANCELLED
        self._doomed = [each.request() for each, chosen in zip(asked, again, strict=True) if chosen]
        waiting = [*self._requests, *self._doomed]
        self._waiting = [waiting[n] for n in self._random.permutation(len(waiting))]

    def run(self) -> list[Request]:
        while self._waiting or not self._engine.idle:
            self._submit_some()
            self._engine.step()
            self._cancel_some()
        return self._requests

    def _submit_some(self) -> None:
        scheduler = self._engine.scheduler
        room = COMPANY - scheduler.waiting - scheduler.running
        for _ in range(min(int(self._random.integers(5)), max(room, 0), len(self._waiting))):
            self._engine.submit(self._waiting.pop())

    def _cancel_some(self) -> None:
        for request in self._doomed:
            if request.timings.submitted is not None and self._random.random() < 0.1:
                self._engine.cancel(request)


class _Leads(OneToken):
    """Writes down how clear each choice was."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: list[float] = []

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        for row in logits:
            second, best = np.partition(row, -2)[-2:]
            self.leads.append(float((best - second) / (row.max() - row.min())))
        return super().accept(plan, logits)
