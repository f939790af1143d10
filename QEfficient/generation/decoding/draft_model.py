"""A draft model: a smaller program with the same vocabulary says how it would go on, and that is tried.

It keeps its own state of each request, in the blocks or slots of its own session, and catches up with what came without
it. Who finds no room there is decoded without drafts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from QEfficient.devices import Batch, Limits, Row, Session
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.adaptive import Offer
from QEfficient.generation.decoding.speculation import Drafts, Speculation
from QEfficient.generation.places import Place, places_for
from QEfficient.generation.plan import Plan, Step
from QEfficient.generation.request import Request

LOOKAHEAD = 8
SELDOM, ONE_IN = 0.25, 8
"""Where fewer drafts than that are right, the draft model reads only one prompt in so many: reading takes time too."""


@dataclass(eq=False)
class Course:
    """What the session does for one request in one step: read on, and draft if that brings it to the end."""

    place: Place
    wanted: int
    fed: int
    """How many tokens and drafts the session has seen."""
    drafts: list[int] = field(default_factory=list)

    def row(self, chunk: int) -> Row:
        """What is to be fed next."""
        request = self.place.request
        tokens = (*request.tokens_from(self.fed, chunk), *self.drafts[max(self.fed - request.length, 0) :])
        logits = int(self.fed + len(tokens) == request.length + len(self.drafts))
        return Row(self.place.slot, tokens, self.fed, logits, tuple(self.place.blocks))


class DraftModel(Speculation):
    """Tries the likeliest tokens of another session, which nobody else may use."""

    def __init__(
        self,
        session: Session,
        lookahead: int = LOOKAHEAD,
        *,
        adaptive: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(lookahead, adaptive=adaptive, clock=clock)
        self._session, self._limits = session, session.limits
        if self._limits.choice is not None or not can_go_back(self._limits):
            raise OptionError(
                "the draft model's session cannot go back behind drafts that were wrong. Choose a model without"
                " recurrent states, compiled without windows that roll (retain_full_kv) and without include_sampler."
            )
        self._chunk = min(self._limits.chunk, self._limits.tokens or self._limits.chunk)
        self._places = places_for(self._limits)
        self._held: dict[Request, Place] = {}  # who was left alone longest comes first
        self._courses: dict[Request, Course] = {}  # of the step that runs now
        self._seen: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        self._numbers = count()
        self._vocabulary: int | None = None
        self._users: WeakSet[Request] = WeakSet()  # of the steps so far, also those that have no place here
        self._turn = threading.Lock()  # held by who feeds the session: it does not give way meanwhile
        session.offer(self.give_way)

    @property
    def held(self) -> int:
        """How many requests have a place in the session."""
        return len(self._held)

    def close(self) -> None:
        """Give the session back."""
        self._session.close()

    def give_way(self) -> bool:
        """Let the session rest for the sake of another program, if all requests that came by here have ended; whether
        it did. It comes back with the next drafts. May be called from another thread."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if not all(request.finished for request in self._users) or not self._session.rest():
                return False
            self._held.clear()
            self._places = places_for(self._limits)  # the old ones tell of what is gone
            return True
        finally:
            self._turn.release()

    def propose(self, plan: Plan) -> Plan:
        with self._turn:
            self._users.update(step.request for step in plan.steps)
            return super().propose(plan)

    def accept(self, plan: Plan, logits: np.ndarray) -> Sequence[Sequence[int]]:
        own, theirs = self._vocabulary, logits.shape[-1]
        if own is not None and own != theirs:
            raise OptionError(
                f"the draft model has a vocabulary of {own:,} tokens, but the model has {theirs:,}. Take a draft model"
                " of the same family."
            )
        return super().accept(plan, logits)

    def _offers(self, steps: Sequence[Step]) -> list[Offer]:
        for request in [request for request in self._held if request.finished]:
            self._leave(request)
        most = self._limits.ctx_len + 1  # the last draft is not fed
        begun = [step for step in steps if step.request.generated and self._reads(step.request)]
        return [Offer(step.request, min(step.room, most - step.request.length)) for step in begun]

    def _reads(self, request: Request) -> bool:
        """Whether it is worth the time to read its prompt."""
        if request in self._held or self._lengths is None or self._lengths.usual() >= SELDOM:
            return True
        if request not in self._seen:
            self._seen[request] = next(self._numbers)
        return self._seen[request] % ONE_IN == 0

    def _draft(self, wanted: Mapping[Request, int]) -> Drafts:
        found = [self._course(request, wanted) for request in wanted]
        self._courses = {course.place.request: course for course in found if course is not None}
        courses = list(self._courses.values())
        try:
            for source, target in self._places.pop_copies():
                self._session.copy_block(source, target)
            self._run(courses)
        except BaseException:
            for course in courses:  # nobody knows what the session wrote
                self._leave(course.place.request)
            raise
        for course in courses:  # never the last token: who comes again without a new one needs its logits again
            course.place.computed = min(course.fed, course.place.request.length - 1)
        return {course.place.request: course.drafts for course in courses}

    def _settle(self, request: Request, kept: int) -> None:
        """Drafts that were right are computed."""
        course = self._courses.pop(request)
        course.place.computed = min(course.fed, request.length + kept - 1)

    def _course(self, request: Request, wanted: Mapping[Request, int]) -> Course | None:
        """What to do for a request, for which there is room then; None if there is not enough."""
        place = self._held.pop(request, None) or self._entered(request, wanted)
        if place is None:
            return None
        self._held[request] = place
        self._places.record(place)
        self._places.skip(place)
        drafts = wanted[request] if request.length - place.computed <= self._chunk else 0
        end = request.length + drafts - 1 if drafts else place.computed + self._chunk
        short = end - self._grow(place, end, wanted)
        if short <= 0:
            return Course(place, drafts, place.computed)
        if short < drafts:
            return Course(place, drafts - short, place.computed)
        self._leave(request)
        return None

    def _entered(self, request: Request, wanted: Mapping[Request, int]) -> Place | None:
        if self._places.full and not self._make_way(wanted):
            return None
        place = Place(request, 0)
        self._places.enter(place)
        return place

    def _grow(self, place: Place, end: int, wanted: Mapping[Request, int]) -> int:
        """Make room up to a position, if need be in place of requests that are not drafted for now."""
        while (room := self._places.grow(place, end)) < end:
            if not self._make_way(wanted):
                break
        return room

    def _make_way(self, wanted: Mapping[Request, int]) -> bool:
        """Send away who was left alone longest; whether there was somebody."""
        idle = next((request for request in self._held if request not in wanted), None)
        if idle is not None:
            self._leave(idle)
        return idle is not None

    def _leave(self, request: Request) -> None:
        self._places.leave(self._held.pop(request))

    def _run(self, courses: Sequence[Course]) -> None:
        """All requests side by side, one token further with each round."""
        while courses:
            rows = [course.row(self._chunk) for course in courses]
            chosen: list[int] = []
            for batch in batches(rows, self._limits):
                logits = self._session.run(batch)
                self._vocabulary = logits.shape[-1]
                chosen += np.argmax(logits, axis=-1).tolist()
            tokens = iter(chosen)
            for course, row in zip(courses, rows, strict=True):
                course.fed += len(row.tokens)
                if row.logits:
                    course.drafts.append(next(tokens))
            courses = [course for course in courses if len(course.drafts) < course.wanted]


def can_go_back(limits: Limits) -> bool:
    """Whether a sequence may go on from an earlier position than it has reached."""
    return limits.keeps_slots if limits.paging is None else limits.paging.shareable


def batches(rows: Sequence[Row], limits: Limits) -> Iterator[Batch]:
    """The rows in their order, in as many runs as it takes."""
    together: list[Row] = []
    for row in rows:
        if together and not _fits([*together, row], limits):
            yield Batch(tuple(together))
            together = []
        together.append(row)
    if together:
        yield Batch(tuple(together))


def _fits(rows: Sequence[Row], limits: Limits) -> bool:
    short = sum(limits.is_short(row) for row in rows)
    within = limits.tokens is None or sum(len(row.tokens) for row in rows) <= limits.tokens
    return within and short <= limits.decode_rows and len(rows) - short <= limits.prefill_rows
