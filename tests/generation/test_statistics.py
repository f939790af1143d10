from __future__ import annotations

from typing import Any

import pytest
from paged_world import CheckedSession, Clock, Drafts, PlannedError, paged_limits, request

from QEfficient.generation.engine import Engine


def test_statistics(clock: Clock) -> None:
    class Slow(CheckedSession):
        def run(self, batch: Any) -> Any:
            clock.now += 0.5
            return super().run(batch)

    engine = Engine(Slow(paged_limits(blocks=64, slots=2)), clock=clock)
    for one in (request(10, new=2), request(10, 50, new=1), request(10, 80, new=1)):
        engine.submit(one)
    engine.step()
    now = engine.statistics
    assert (now.steps, now.rows, now.tokens, now.capacity, now.sampled_rows) == (1, 2, 16, 16, 0)
    assert (now.running, now.waiting, now.cache.blocks.used, now.fill) == (2, 1, 4, 1.0)
    engine.run()
    end = engine.statistics
    assert (end.steps, end.rows, end.tokens, end.capacity) == (4, 7, 31, 64)
    assert (end.generated, end.sampled_rows, end.ended) == (4, 4, {"length": 3})
    assert (end.seconds, end.started, end.queue_seconds) == (2.0, 3, 1.0)
    assert (end.fill, end.rows_per_step, end.tokens_per_step) == (31 / 64, 7 / 4, 31 / 4)
    assert (end.mean_queue_seconds, end.generated_per_second, end.generated_per_row) == (1 / 3, 2.0, 1.0)
    assert now.steps == 1  # a snapshot stays


def test_statistics_of_the_cache() -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=9)))
    for _ in range(2):
        engine.generate([request(8, n, new=20) for n in (1, 50)])
    end = engine.statistics
    assert end.preemptions > 0 and end.cache.evictions > 0 and end.cache.blocks.used == 0
    assert 0 < end.hit_rate < 1 and end.ended == {"length": 4}


def test_statistics_where_only_rows_are_counted() -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64, tokens=None, decode_rows=4, prefill_rows=2)))
    engine.generate([request(8, n, new=3) for n in (1, 50, 100)])
    assert engine.statistics.capacity == 2 * 16 + 2 * 4
    assert engine.statistics.tokens == 24 + 6


def test_statistics_of_failures_and_drafts() -> None:
    session = CheckedSession(paged_limits(blocks=64))
    engine = Engine(session, Drafts(3, wrong=99))
    session.failures = ["before"]
    with pytest.raises(PlannedError):
        engine.generate([request(3)])
    engine.generate([request(3, new=9)])
    end = engine.statistics
    assert (end.failed_steps, end.ended) == (1, {"cancelled": 1, "length": 1})
    assert (end.generated, end.sampled_rows, end.generated_per_row) == (9, 3, 3.0)


def test_an_engine_that_did_nothing() -> None:
    idle = Engine(CheckedSession(paged_limits(blocks=64))).statistics
    assert (idle.fill, idle.hit_rate, idle.mean_queue_seconds, idle.cache.blocks.free) == (0.0, 0.0, 0.0, 64)


def test_timings(clock: Clock) -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64)), clock=clock)
    one = request(3, new=1)
    assert one.timings.queued is None
    engine.submit(one)
    clock.now += 2
    engine.run()
    assert one.timings.queued == 2.0
