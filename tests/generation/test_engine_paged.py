"""Engines on sessions with blocks, whose tokens depend on everything that is read from the blocks."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from paged_world import (
    CheckedSession,
    Clock,
    Drafts,
    PlannedError,
    alone,
    check_blocks,
    check_nothing_held,
    paged_limits,
    request,
)

from QEfficient.devices import Limits
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Scheduler
from QEfficient.specs import SamplingParams


@dataclass(frozen=True)
class World:
    limits: Limits
    prefix_cache: bool = True
    drafts: int = 0
    fails: bool = False

    def engine(self, clock: Clock) -> Engine:
        scheduler = Scheduler(self.limits, prefix_cache=self.prefix_cache, lookahead=self.drafts)
        return Engine(CheckedSession(self.limits), Drafts(self.drafts) if self.drafts else None, scheduler, clock)


WORLDS = {
    "roomy": World(paged_limits(blocks=64)),
    "scarce": World(paged_limits(blocks=10)),
    "room for one": World(paged_limits(blocks=8)),
    "one block": World(paged_limits(size=32, blocks=3)),
    "tiny blocks": World(paged_limits(size=1, blocks=50)),
    "odd blocks": World(paged_limits(size=5, blocks=11, chunk=7)),
    "no prefix cache": World(paged_limits(blocks=12), prefix_cache=False),
    "not shareable": World(paged_limits(blocks=12, shareable=False), drafts=3),
    "rows only": World(paged_limits(blocks=12, tokens=None, decode_rows=3, prefill_rows=2)),
    "rows only, one block": World(paged_limits(size=32, blocks=2, tokens=None, prefill_rows=1)),
    "few tokens": World(paged_limits(blocks=14, tokens=3)),
    "one token": World(paged_limits(blocks=14, tokens=1)),
    "one by one": World(paged_limits(blocks=14, chunk=1)),
    "few decode rows": World(paged_limits(blocks=14, decode_rows=2, prefill_rows=2)),
    "drafts": World(paged_limits(blocks=20), drafts=3),
    "drafts, scarce": World(paged_limits(blocks=9), drafts=3),
    "drafts, tiny blocks": World(paged_limits(size=1, blocks=40, tokens=None), drafts=3),
    "failing": World(paged_limits(blocks=11), fails=True, drafts=2),
    "failing, not shareable": World(paged_limits(blocks=11, shareable=False), fails=True),
}


class Life:
    """Random requests come, fork, are cancelled, run out of time, and share an engine. A step takes a second."""

    def __init__(self, world: World, seed: int) -> None:
        self.clock = Clock()
        self.engine = world.engine(self.clock)
        self.session: Any = self.engine.session
        self.requests: list[Request] = []
        self.world, self.random = world, random.Random(seed)
        self._beginnings = [tuple(self.random.randrange(99) for _ in range(30)) for _ in range(3)]

    def come(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 1, 2, 5))):
            self._submit(self._new())
            while self.random.random() < 0.3:
                self._submit(self.random.choice(self.requests[-3:]).fork(self._params()))

    def step(self) -> None:
        if self.world.fails and self.random.random() < 0.1:
            self.session.failures = [self.random.choice(("before", "after", "copy"))]
        self.clock.now += 1
        with suppress(PlannedError):
            self.engine.step()
        self.session.failures.clear()
        check_blocks(self.engine.scheduler, self.session)

    def cancel(self) -> None:
        if self.requests and self.random.random() < 0.15:
            self.engine.cancel(self.random.choice(self.requests[-10:]))

    def send_back(self) -> None:
        scheduler: Any = self.engine.scheduler
        if scheduler.running and self.random.random() < 0.1:
            scheduler._send_back(self.random.choice(list(scheduler._running.values())))

    def _submit(self, one: Request) -> None:
        self.engine.submit(one)
        self.requests.append(one)

    def _new(self) -> Request:
        beginning = self.random.choice(self._beginnings)[: self.random.randrange(31)]
        end = tuple(self.random.randrange(99) for _ in range(self.random.choice((0, 0, 1, 5))))
        prompt = (beginning + end or (7,))[: self.world.limits.ctx_len - 1]
        priority = self.random.choice((0, 0, 0, 1))
        deadline = self.random.choice((None, None, None, None, 3.0, 100.0))
        salt = self.random.choice(("", "", "other"))
        return Request(prompt, self._params(), priority=priority, salt=salt, deadline=deadline)

    def _params(self) -> SamplingParams:
        return SamplingParams(max_new_tokens=self.random.choice((None, 1, 2, 6, 12)))


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("seed", range(2))
def test_tokens_are_those_of_each_alone(world: World, seed: int) -> None:
    life = Life(world, seed)
    for _ in range(150):
        life.come()
        life.step()
        life.cancel()
        life.send_back()
    for _ in range(20_000):
        if life.engine.idle:
            break
        life.step()
    check_nothing_held(life.engine.scheduler)
    assert {one.finish_reason for one in life.requests} == {"length", "cancelled", "timeout"}
    for one in life.requests:
        assert one.generated == alone(one.prompt, len(one.generated))
        assert one.cached_tokens < len(one.prompt)
        if one.finish_reason == "length":
            room = world.limits.ctx_len - len(one.prompt)
            assert len(one.generated) == min(one.params.max_new_tokens or room, room)


def test_the_worlds_are_wild() -> None:
    """What the test above is about does happen in it."""
    scarce, drafts = Life(WORLDS["scarce"], 0), Life(WORLDS["drafts"], 0)
    for life in (scarce, drafts):
        for _ in range(150):
            life.come()
            life.step()
        life.engine.run()
        counts = life.engine.scheduler.counts
        assert counts.evictions > 100 and counts.hit_tokens > 1000 and len(life.session.copies) > 10
    assert scarce.engine.scheduler.preemptions > 10
    assert drafts.engine._decoding.right > 500  # type: ignore[attr-defined]


def sampled(prompt: tuple[int, ...], seed: int) -> Request:
    return Request(prompt, SamplingParams(max_new_tokens=8, temperature=5.0, seed=seed))


@pytest.mark.parametrize("blocks", [8, 12])
def test_seeded_tokens_survive_being_sent_back(blocks: int) -> None:
    prompts = [tuple(range(n, 20 + n)) for n in range(5)]
    roomy = Engine(CheckedSession(paged_limits(blocks=99)))
    expected = [roomy.generate([sampled(prompt, n)])[0].generated_ids for n, prompt in enumerate(prompts)]
    scarce = Engine(CheckedSession(paged_limits(blocks=blocks)))
    outputs = scarce.generate([sampled(prompt, n) for n, prompt in enumerate(prompts)])
    assert [output.generated_ids for output in outputs] == expected


def test_samples_compute_their_prompt_once() -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64)))
    session: Any = engine.session
    first = request(14, new=5)
    samples = [first, *(first.fork(replace(first.params, temperature=3.0, seed=seed)) for seed in range(3))]
    engine.generate(samples)
    fed = sum(len(row.tokens) for batch in session.batches for row in batch.rows)
    assert fed == 14 + 3 + 4 * 4  # the prompt, its last token for each fork, and what was generated
    assert len(session.copies) == 3
    assert [one.cached_tokens for one in samples] == [0, 13, 13, 13]
    assert first.generated == alone(first.prompt, 5)
    roomy = Engine(CheckedSession(paged_limits(blocks=64)))
    for one in samples[1:]:
        (output,) = roomy.generate([Request(one.prompt, one.params)])
        assert list(output.generated_ids) == one.generated


def test_a_finished_request_leaves_its_blocks_to_others() -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64)))
    (before,) = engine.generate([request(14, new=3)])
    again, other = request(14, new=3), request(14, new=3, salt="other")
    longer = Request((*before.prompt_ids, *before.generated_ids, 5), SamplingParams(max_new_tokens=3))
    outputs = engine.generate([again, longer, other])
    assert [output.cached_tokens for output in outputs] == [12, 16, 0]
    assert list(outputs[1].generated_ids) == alone(longer.prompt, 3)


def test_a_prompt_that_is_there_as_a_whole_runs_its_last_token() -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64)))
    session: Any = engine.session
    engine.generate([request(16, new=1)])
    (output,) = engine.generate([request(16, new=1)])
    assert list(output.generated_ids) == alone(range(1, 17), 1)
    assert output.cached_tokens == 15 and len(session.batches[-1].rows[0].tokens) == 1
    assert not session.copies  # nobody else holds the last block, so it is written in place
    outputs = engine.generate([request(16, new=1), request(16, new=1)])
    assert {tuple(output.generated_ids) for output in outputs} == {tuple(alone(range(1, 17), 1))}
    assert len(session.copies) == 1  # now two do


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("shareable", [True, False])
def test_requests_of_a_failed_step_start_anew(when: str, shareable: bool) -> None:
    engine = Engine(CheckedSession(paged_limits(blocks=64, shareable=shareable)))
    session: Any = engine.session
    requests = [request(10, first, new=6) for first in (1, 50)]
    for one in requests:
        engine.submit(one)
    for _ in range(4):
        engine.step()
    session.failures = [when]
    with pytest.raises(PlannedError, match=when):
        engine.step()
    assert (engine.scheduler.waiting, engine.scheduler.running) == (2, 0)
    engine.run()
    assert [one.generated for one in requests] == [alone(one.prompt, 6) for one in requests]
    check_nothing_held(engine.scheduler)
