from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from paged_world import CheckedSession, Clock, alone, check_nothing_held, paged_limits, request

from QEfficient.generation.deadlines import SLACK, Deadlines
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request


def engine_with(clock: Callable[[], float], **limits: Any) -> Engine:
    return Engine(CheckedSession(paged_limits(**limits)), clock=clock)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4], ids=["queued", "prompt", "prompt again", "generating", "later"])
def test_time_runs_out_anywhere(clock: Clock, steps: int) -> None:
    engine = engine_with(clock, blocks=64)
    late, other = request(14, new=9, deadline=5.0), request(3, 50, new=9)
    engine.submit(late)
    engine.submit(other)
    for _ in range(steps):
        engine.step()
    clock.now += 4.9
    assert all(event.finish_reason is None for event in engine.step())
    clock.now += 0.2
    ends = {event.request: event for event in engine.step() if event.finish_reason}
    assert ends[late].finish_reason == "timeout" and not ends[late].tokens
    assert late.generated == alone(late.prompt, len(late.generated)) and late.timings.finished == clock.now
    engine.run()
    assert other.generated == alone(other.prompt, 9)
    check_nothing_held(engine.scheduler)


def test_time_runs_out_for_all_at_once(clock: Clock) -> None:
    engine = engine_with(clock, blocks=8)
    requests = [request(20, 20 * n, new=9, deadline=1.0) for n in range(9)]
    for one in requests:
        engine.submit(one)
    engine.step()
    clock.now += 1
    assert {event.request for event in engine.step()} == set(requests)
    check_nothing_held(engine.scheduler)
    assert engine.statistics.ended == {"timeout": 9}


def test_samples_run_by_themselves_when_the_first_is_late(clock: Clock) -> None:
    engine = engine_with(clock, blocks=64)
    first = request(18, new=4, deadline=1.0)
    second = first.fork()
    second.deadline = None
    engine.submit(first)
    engine.submit(second)
    engine.step()
    clock.now += 1
    engine.run()
    assert first.finish_reason == "timeout" and second.generated == alone(first.prompt, 4)


def test_a_request_that_ends_in_time_stays_so(clock: Clock) -> None:
    engine = engine_with(clock, blocks=64)
    done, stopped = request(3, new=1, deadline=1.0), request(3, new=9, deadline=1.0)
    for one in (done, stopped):
        engine.submit(one)
    engine.step()
    engine.cancel(stopped)
    clock.now += 2
    assert engine.step() == []
    assert (done.finish_reason, stopped.finish_reason) == ("length", "cancelled")


def test_a_stream_ends_when_time_runs_out(clock: Clock) -> None:
    engine = engine_with(clock, blocks=64)
    one = request(3, new=9, deadline=1.0)
    reasons = []
    for event in engine.stream([one]):
        reasons.append(event.finish_reason)
        clock.now += 0.4
    assert reasons == [None, None, None, "timeout"]


def test_ended_requests_are_forgotten() -> None:
    deadlines = Deadlines()
    kept = Request((1,))
    deadlines.add(kept, 0.0)
    for _ in range(1000):
        ended = Request((1,))
        deadlines.add(ended, 1e9)
        ended.finish_reason = "stop"
    assert len(deadlines) <= 2 * SLACK
    assert deadlines.pop(0.0) == [kept]
