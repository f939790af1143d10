"""Which requests run, in which slots and blocks, and which of their tokens are next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, repeat

from QEfficient.devices import Limits, Row
from QEfficient.errors import OptionError, PromptError
from QEfficient.generation.places import CacheCounts, Place, places_for
from QEfficient.generation.plan import Plan, Policy, Step, policy_for, prefill_first
from QEfficient.generation.request import Request
from QEfficient.generation.waiting import Queue

__all__ = ["Plan", "Policy", "Scheduler", "Step", "prefill_first"]


class Scheduler:
    """A queue, and the places that it feeds. First come, first served among equal priorities.

    With paging a request takes blocks as it grows. When there are none left, the running request of the lowest priority
    that came last goes back to the front of its queue, and is computed again later as far as its blocks are gone.
    """

    def __init__(
        self, limits: Limits, policy: Policy | None = None, *, prefix_cache: bool = True, lookahead: int = 0
    ) -> None:
        """`policy`: by default what suits the limits. `lookahead`: how many tokens a decoding would like to add to a
        row."""
        self._limits = limits
        self._policy = policy or policy_for(limits)
        self._places = places_for(limits, prefix_cache)
        self.look_ahead(lookahead)
        self._queue = Queue()
        self._arrivals = count()
        self._running: dict[Request, Place] = {}  # in the order of their turns
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._running

    @property
    def counts(self) -> CacheCounts:
        return self._places.counts

    def look_ahead(self, tokens: int) -> None:
        """From now on keep room for so many tokens that a decoding would like to add to a row."""
        limits = self._limits
        goes_back = limits.paging is None or limits.paging.shareable
        self._lookahead = min(tokens, limits.chunk - 1, limits.logits - 1) if goes_back else 0

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
        other = request.like
        if other is not None and (other.prompt, other.salt) != (request.prompt, request.salt):
            raise OptionError(f"request {request.id} has another prompt than {other.id}, like which it should start.")

    def add(self, request: Request) -> None:
        """Queue a request. If it is like one that is here and whose prompt is not through, it waits for that."""
        self.check(request)
        place = Place(request, next(self._arrivals))
        other = self._awaited(request)
        if other is None:
            self._queue.push(place)
        else:
            self._queue.push_aside(place, other)

    def next_batch(self) -> Plan:
        """What to run now; empty when there is nothing to do. Call `advance` once it has run, or `abandon`."""
        self._admit()
        while True:
            sent_back = self.preemptions
            ready = [self._next_step(place) for place in self._running.values()]
            plan = self._with_room(self._policy(ready, self._limits))
            if plan.steps or self.preemptions == sent_back:
                return plan
            if not self._running:  # not before, so that this comes to an end
                self._admit()

    def advance(self, plan: Plan) -> None:
        """Record that a plan has run and that its tokens were accepted; finished requests leave their places."""
        for request, row in ((step.request, step.row) for step in plan.steps):
            place = self._running.get(request)
            if place is None:  # it ended meanwhile
                continue
            # The last token is never computed yet: it was just chosen. Rejected drafts are computed again.
            place.computed = min(place.computed + len(row.tokens), request.length - 1)
            self._places.record(place)
            if request.finished:
                self.release(request)
                continue
            if place.through:
                self._queue.call(request)
            if place.computed == request.length - 1:  # its turn is over; a prompt keeps it until it is through
                self._running[request] = self._running.pop(request)

    def abandon(self, plan: Plan) -> None:
        """Record that a plan has failed: nobody knows what the session wrote, so its requests start anew."""
        for step in plan.steps:
            if step.request in self._running:
                self._send_back(self._running[step.request])
        self._places.spoil()

    def forget(self) -> None:
        """Rely on nothing that is kept of requests that have left: the session has given it up."""
        self._places.spoil()

    def release(self, request: Request) -> None:
        """Forget a request, wherever it is."""
        place = self._running.pop(request, None)
        if place is not None:
            self._places.leave(place)
        else:
            self._queue.remove(request)
        self._queue.call(request)

    def _awaited(self, request: Request) -> Request | None:
        """The request whose prompt this one should wait for."""
        other = request.like
        if other is None or not self._places.shareable:
            return None
        place = self._running.get(other)
        waits = other in self._queue if place is None else not place.through
        return other if waits else None

    def _admit(self) -> None:
        """Let requests in, strictly in their order: small ones must not keep out a large one."""
        if self._queue.first is None or self._places.full:
            return
        spare = self._places.spare(self._running.values())
        while (place := self._queue.first) is not None and not self._places.full:
            origin = self._origin(place)
            spare -= self._places.needed(place, origin)
            if spare < 0:
                return
            self._queue.pop()
            self._places.enter(place, origin)
            self._running[place.request] = place

    def _origin(self, place: Place) -> Place | None:
        """Whose computed prompt the request can take over."""
        request = place.request
        origin = self._running.get(request.like) if request.like and self._places.shareable else None
        if origin is None or not origin.through or request.generated or request.wants_prompt_logits:
            return None
        return origin

    def _next_step(self, place: Place) -> Step:
        request, most = place.request, self._limits.chunk
        if request.wants_prompt_logits:  # what was computed for another gives no logits
            most = min(most, self._limits.logits)
        else:
            self._places.skip(place)
        tokens = request.tokens_from(place.computed, most)
        logits = request.logits_wanted(place.computed, len(tokens))
        return Step(request, Row(place.slot, tokens, place.computed, logits), place.arrival)

    def _with_room(self, chosen: Sequence[Step]) -> Plan:
        """The plan for the chosen steps, of which some may lose their places to others."""
        for step in sorted(chosen, key=lambda s: (-s.request.priority, s.arrival)):
            self._make_room(step)
        steps = [step for step in chosen if step.request in self._running]
        rooms = self._rooms(steps) if self._lookahead else repeat(0)
        planned = [self._placed(step, room) for step, room in zip(steps, rooms, strict=False)]
        return Plan(tuple(planned), self._places.pop_copies())

    def _placed(self, step: Step, room: int) -> Step:
        row, blocks = step.row, tuple(self._running[step.request].blocks)
        return Step(step.request, Row(row.slot, row.tokens, row.start, row.logits, blocks), step.arrival, room)

    def _make_room(self, step: Step) -> None:
        """Take places away, from the last in rank on, until the row fits. Those who were given room before this one
        stand before it, so they keep it."""
        place = self._running.get(step.request)
        if place is None:
            return
        end = step.row.start + len(step.row.tokens)
        while place.slot >= 0 and self._places.grow(place, end) < end:
            self._send_back(max(self._running.values(), key=lambda other: other.rank))
            self.preemptions += 1

    def _send_back(self, place: Place) -> None:
        del self._running[place.request]
        self._places.leave(place)
        self._queue.push(place)
        self._queue.call(place.request)

    def _rooms(self, steps: Sequence[Step]) -> list[int]:
        """How many more tokens each row can take. Those are of tokens, rows and blocks that nobody else needs now."""
        tokens = self._limits.tokens or self._limits.slots * self._limits.chunk
        tokens -= sum(len(step.row.tokens) for step in steps)
        rows = self._limits.prefill_rows - sum(len(step.row.tokens) > 1 for step in steps)
        if self._lookahead < self._limits.decode_chunk:  # tokens ahead do not make such a row one of prefill
            rows = len(steps)
        rooms = []
        for step in steps:
            rooms.append(self._room(step, tokens) if rows else 0)
            tokens, rows = tokens - rooms[-1], rows - bool(rooms[-1])
        return rooms

    def _room(self, step: Step, most: int) -> int:
        request, end = step.request, step.row.start + len(step.row.tokens)
        if len(step.row.tokens) > 1 or end < request.length:
            return 0
        wanted, most_new = min(self._lookahead, most, self._limits.ctx_len - end - 1), request.most_new
        if most_new is not None:
            wanted = min(wanted, most_new - len(request.generated) - 1)
        if wanted <= 0:
            return 0
        return min(self._places.extend(self._running[request], end + wanted) - end, wanted)
