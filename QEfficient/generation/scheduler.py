"""Which requests run, in which slots, and which of their tokens are next."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from QEfficient.devices import Batch, Limits, Row
from QEfficient.errors import PromptError
from QEfficient.generation.request import Request


@dataclass(frozen=True)
class Step:
    """The next row of a request."""

    request: Request
    row: Row


@dataclass(frozen=True)
class Plan:
    """What one step of the engine runs."""

    steps: tuple[Step, ...]

    @property
    def batch(self) -> Batch:
        return Batch(tuple(step.row for step in self.steps))

    @property
    def sampled(self) -> list[Request]:
        """The requests whose logits come back, in row order."""
        return [step.request for step in self.steps if step.row.logits]


Policy = Callable[[Sequence[Step], Limits], Sequence[Step]]
"""Chooses, from the next step of every running request, those that run now."""


def prefill_first(ready: Sequence[Step], limits: Limits) -> Sequence[Step]:
    """Rows of several tokens as long as there are any, or else rows of one."""
    several = [step for step in ready if len(step.row.tokens) > 1]
    return several[: limits.prefill_rows] or ready[: limits.decode_rows]


@dataclass
class _Place:
    slot: int
    computed: int = 0
    """How many tokens of the request the slot holds."""


class Scheduler:
    """A queue, and the slots that it feeds. First come, first served among equal priorities."""

    def __init__(self, limits: Limits, policy: Policy = prefill_first) -> None:
        self._limits = limits
        self._policy = policy
        self._queue: list[tuple[int, int, Request]] = []
        self._arrivals = count()
        self._running: dict[Request, _Place] = {}  # in the order of their turns
        self._free = list(range(limits.slots))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._running

    def check(self, request: Request) -> None:
        """Refuse a prompt that can never run."""
        length, ctx_len = len(request.prompt), self._limits.ctx_len
        if not length:
            raise PromptError("the prompt is empty: it must have at least one token.")
        if length >= ctx_len:
            full = ", and a new token needs room too" if length == ctx_len else ""
            if self._limits.bounded_by_model:
                raise PromptError(f"prompt has {length:,} tokens, but the model has {ctx_len:,} positions only{full}.")
            raise PromptError(
                f"prompt has {length:,} tokens, but the program was compiled for ctx_len {ctx_len:,}{full}."
                " Compile again with a larger ctx_len."
            )

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.check(request)
        heapq.heappush(self._queue, (-request.priority, next(self._arrivals), request))

    def next_batch(self) -> Plan:
        """What to run now; empty when there is nothing to do. Call `advance` once it has run."""
        while self._queue and self._free:
            request = heapq.heappop(self._queue)[-1]
            self._running[request] = _Place(heapq.heappop(self._free))
        ready = [self._next_step(request, place) for request, place in self._running.items()]
        return Plan(tuple(self._policy(ready, self._limits)))

    def advance(self, plan: Plan) -> None:
        """Record that a plan has run and that its tokens were accepted; finished requests leave their slots."""
        for request, row in ((step.request, step.row) for step in plan.steps):
            if request.finished:
                self.release(request)
                continue
            place = self._running[request]
            # The last token is never computed yet: it was just chosen. Rejected drafts are computed again.
            place.computed = min(place.computed + len(row.tokens), request.length - 1)
            if row.logits:  # its turn is over; a prompt keeps its turn until it is through
                self._running[request] = self._running.pop(request)

    def release(self, request: Request) -> None:
        """Forget a request, wherever it is."""
        place = self._running.pop(request, None)
        if place is not None:
            heapq.heappush(self._free, place.slot)
            return
        self._queue = [entry for entry in self._queue if entry[-1] is not request]
        heapq.heapify(self._queue)

    def _next_step(self, request: Request, place: _Place) -> Step:
        tokens = request.tokens_from(place.computed, self._limits.chunk)
        through = place.computed + len(tokens) == request.length
        return Step(request, Row(place.slot, tokens, place.computed, logits=int(through)))
