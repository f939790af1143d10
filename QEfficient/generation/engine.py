"""The loop: schedule, propose, run, accept, emit. Not thread-safe: one thread steps it, which others disturb only to
have an idle session give way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from QEfficient.devices import Session
from QEfficient.errors import EngineError, OptionError, SessionLostError
from QEfficient.generation.deadlines import Deadlines
from QEfficient.generation.decoding import Decoding, Drafting
from QEfficient.generation.decoding.one_token import OneToken
from QEfficient.generation.plan import Plan
from QEfficient.generation.recording import check_logprobs
from QEfficient.generation.request import FinishReason, Request, RequestOutput, output_of
from QEfficient.generation.scheduler import Scheduler
from QEfficient.generation.statistics import Statistics

Clock = Callable[[], float]


@dataclass(frozen=True)
class Event:
    """New tokens of a request; the last event of a request says why it ended."""

    request: Request
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None


class Engine:
    """Feeds one session with the batches of a scheduler."""

    def __init__(
        self,
        session: Session,
        decoding: Decoding | None = None,
        scheduler: Scheduler | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.session = session
        self.scheduler = scheduler or Scheduler(session.limits)
        self.use(decoding or OneToken())
        self._clock = clock
        self._deadlines = Deadlines()
        self._totals = Statistics()
        self._lost: SessionLostError | None = None
        self.turn = threading.RLock()
        """Held by who feeds the session: it does not give way meanwhile."""
        session.offer(self.give_way)

    @property
    def lost(self) -> SessionLostError | None:
        """Why nothing can run here any more: the session, or one of the decoding's, went with its device."""
        return self._lost or self.session.lost

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    @property
    def statistics(self) -> Statistics:
        """May be read from another thread."""
        own = self.scheduler
        return replace(
            self._totals, preemptions=own.preemptions, cache=own.counts, waiting=own.waiting, running=own.running
        )

    def give_way(self) -> bool:
        """Let the session rest for the sake of another program, if nothing needs it now; whether it did. It comes back
        with the next run. May be called from another thread."""
        if not self.turn.acquire(blocking=False):
            return False
        try:
            if not self.idle or not self.session.rest():
                return False
            self.scheduler.forget()
            return True
        finally:
            self.turn.release()

    def use(self, decoding: Decoding) -> None:
        """Find tokens in this way from the next step on, also those of requests that are here."""
        self._decoding = decoding
        self.scheduler.look_ahead(decoding.lookahead if isinstance(decoding, Drafting) else 0)

    def submit(self, request: Request) -> None:
        """Queue a new request. Raises `PromptError` if it can never fit, `EngineError` if the session is lost."""
        self._check_session()
        if request.timings.submitted is not None:
            raise OptionError(f"request {request.id} was submitted before. Make a new one.")
        check_logprobs(request, self.session.limits)
        with self.turn:
            self.scheduler.add(request)
        request.timings.submitted = self._clock()
        if request.deadline is not None:
            self._deadlines.add(request, request.timings.submitted + request.deadline)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request from outside; nothing happens if it has ended already."""
        if not request.finished:
            request.finish_reason = reason
            with self.turn:
                self.scheduler.release(request)
            self._end(request, reason)

    def cancel(self, request: Request) -> None:
        self.finish(request, "cancelled")

    def step(self) -> list[Event]:
        """Run one batch; return the new tokens. Without work nothing runs.

        If the session or the decoding raises, the requests of the batch stay: they start anew with the next step, and
        have lost no token. It is for the caller to cancel them or to try again; after a `SessionLostError` only to
        cancel them, and to open the program again for another engine.
        """
        self._check_session()
        with self.turn:
            late = self._stop_late()
            plan = self.scheduler.next_batch()
            return late + self._run(plan) if plan.steps else late

    def run(self) -> None:
        """Step until nothing is left to do."""
        while not self.idle:
            self.step()

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Submit requests and yield their events; closing the iterator cancels those that are left.

        Requests of others that are in the engine advance too, and while others step it these do: what came meanwhile is
        in the next event.
        """
        told: dict[Request, int] = {}  # how many of its tokens were in events
        try:
            for request in requests:
                self.submit(request)
                told[request] = 0
            while told:
                yield from self._news(told)
                if told:
                    self.step()
        finally:
            for request in told:
                self.cancel(request)

    def _news(self, told: dict[Request, int]) -> Iterator[Event]:
        for request in list(told):
            tokens = tuple(request.generated[told[request] :])
            if request.finished:
                del told[request]
            else:
                told[request] += len(tokens)
            if tokens or request.finished:
                yield Event(request, tokens, request.finish_reason)

    def generate(self, requests: Sequence[Request]) -> list[RequestOutput]:
        """Run requests to their ends; outputs in the order of the requests."""
        for _ in self.stream(requests):
            pass
        return [output_of(request) for request in requests]

    def _check_session(self) -> None:
        lost = self.lost
        if lost is not None:
            raise EngineError(
                f"this engine's session is lost: open the program again, and make another engine. {lost}"
            ) from lost

    def _stop_late(self) -> list[Event]:
        late = self._deadlines.pop(self._clock())
        for request in late:
            self.finish(request, "timeout")
        return [Event(request, (), request.finish_reason) for request in late]

    def _run(self, plan: Plan) -> list[Event]:
        started = self._clock()
        try:
            for source, target in plan.copies:
                self.session.copy_block(source, target)
            proposed = self._decoding.propose(plan)
            logits = self.session.run(proposed.batch)
            accepted = self._decoding.accept(proposed, logits)
        except BaseException as error:
            self._lost = error if isinstance(error, SessionLostError) else None
            self.scheduler.abandon(plan)
            self._totals = replace(self._totals, failed_steps=self._totals.failed_steps + 1)
            raise
        return self._emit(proposed, accepted, started)

    def _emit(self, plan: Plan, accepted: Sequence[Sequence[int]], started: float) -> list[Event]:
        now = self._clock()
        self._record_prefill(plan, started, (now - started) / len(plan.steps))
        events = []
        for request, tokens in zip(plan.sampled, accepted, strict=True):
            if request.finished:  # from outside, while its tokens were chosen
                continue
            kept = request.extend(tokens, self.session.limits.ctx_len)
            if not kept and not request.finished:  # its logits were about the prompt
                continue
            if request.timings.first_token is None:
                request.timings.first_token = now
            if request.finish_reason is not None:
                self._end(request, request.finish_reason)
            events.append(Event(request, kept, request.finish_reason))
        self.scheduler.advance(plan)
        kept_counts = [len(event.tokens) for event in events if event.tokens]
        self._totals = self._totals.with_step(plan, self.session.limits, kept_counts, now - started)
        return events

    def _record_prefill(self, plan: Plan, started: float, share: float) -> None:
        """Share the step's seconds among its rows; those whose prompt is running take note of theirs."""
        for request in (step.request for step in plan.steps if not step.request.generated):
            request.timings.prefill += share
            if request.timings.started is None:
                request.timings.started = started
                self._totals = self._totals.with_start(request.timings.queued or 0.0)

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.timings.finished = self._clock()
        self._totals = self._totals.with_end(reason)
