from __future__ import annotations

from typing import Any

import pytest
from paged_world import CheckedSession, check_blocks, check_nothing_held, paged_limits, request

from QEfficient.devices import Limits
from QEfficient.errors import OptionError
from QEfficient.generation.places import Slots, places_for
from QEfficient.generation.plan import Plan
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Scheduler
from QEfficient.specs import SamplingParams

LIMITS = paged_limits(blocks=64)


class Run:
    """Schedules on a session, whose best token every row gets that wants logits."""

    def __init__(self, limits: Limits = LIMITS, **options: Any) -> None:
        self.limits, self.session, self.scheduler = limits, CheckedSession(limits), Scheduler(limits, **options)

    def add(self, *requests: Request) -> None:
        for one in requests:
            self.scheduler.add(one)

    def step(self) -> Plan:
        plan = self.scheduler.next_batch()
        for copy in plan.copies:
            self.session.copy_block(*copy)
        for one, token in zip(plan.sampled, self.session.run(plan.batch).argmax(-1).tolist(), strict=True):
            one.extend([token], self.limits.ctx_len)
        self.scheduler.advance(plan)
        check_blocks(self.scheduler, self.session)
        return plan

    def steps(self, count: int) -> list[dict[Request, int]]:
        """For each step, how many tokens of whom ran."""
        return [{step.request: len(step.row.tokens) for step in self.step().steps} for _ in range(count)]

    def finish(self) -> None:
        while not self.scheduler.idle:
            self.step()
        check_nothing_held(self.scheduler)


# Who runs


def test_prompts_fill_what_those_who_generate_leave() -> None:
    run = Run()
    generating = [request(2, first, new=20) for first in (1, 50)]
    run.add(*generating)
    run.step()
    long, longer = request(20, 200), request(30, 300)
    run.add(long, longer)
    assert run.steps(1) == [{generating[0]: 1, generating[1]: 1, long: 7, longer: 7}]
    for plan in run.steps(6):
        assert plan[generating[0]] == plan[generating[1]] == 1


def test_a_prompt_alone_gets_all_the_tokens() -> None:
    run = Run(paged_limits(blocks=64, chunk=16))
    alone = request(30)
    run.add(alone)
    assert run.steps(3) == [{alone: 16}, {alone: 14}, {alone: 1}]


def test_what_short_prompts_leave_goes_to_the_long_one() -> None:
    run = Run(paged_limits(blocks=64, chunk=16))
    long, short, shorter = request(20, 500), request(3, 10), request(2, 20)
    run.add(long, short, shorter)
    assert run.steps(1) == [{long: 11, short: 3, shorter: 2}]


def test_a_long_prompt_and_a_stream_of_short_ones_do_not_stop_each_other() -> None:
    run = Run(paged_limits(blocks=64, slots=3, chunk=8, tokens=8, ctx_len=64))
    long = request(60, 500, new=1)
    run.add(long)
    run.step()
    shorts = []
    for number in range(40):
        shorts.append(request(6, 10 * number, new=1))
        run.add(shorts[-1])
        (plan,) = run.steps(1)
        assert long.finished or plan[long] >= 4
    assert long.finished
    assert sum(one.finished for one in shorts) >= 15


def test_short_prompts_do_not_wait_until_a_long_one_is_through() -> None:
    run = Run(paged_limits(blocks=64, tokens=8, ctx_len=64))
    long, short = request(60, 500), request(4, 10, new=1)
    run.add(long, short)
    assert run.steps(1) == [{long: 4, short: 4}]
    assert short.finished


def test_higher_priority_takes_all_it_can() -> None:
    run = Run()
    low, high, higher = request(20, 1), request(20, 100, priority=1), request(20, 200, priority=2)
    run.add(low, high, higher)
    assert run.steps(1) == [{higher: 8, high: 8}]
    run.add(request(9, 300))
    assert list(run.steps(1)[0]) == [higher, high]


def test_decode_rows_take_turns_when_a_run_has_too_few() -> None:
    run = Run(paged_limits(blocks=64, decode_rows=2))
    requests = [request(2, 10 * n, new=9) for n in range(3)]
    run.add(*requests)
    run.step()
    ran = [list(step) for step in run.steps(6)]
    assert all(len(step) == 2 for step in ran)
    assert [sum(one in step for step in ran) for one in requests] == [4, 4, 4]


def test_higher_priority_does_not_take_turns_with_lower() -> None:
    run = Run(paged_limits(blocks=64, decode_rows=1))
    low, high = request(2, 1, new=3), request(2, 50, new=3, priority=1)
    run.add(low, high)
    assert [list(step) for step in run.steps(5)] == [[high, low], [high], [high], [low], [low]]


def test_a_prompt_of_one_token_does_not_exceed_the_decode_rows() -> None:
    run = Run(paged_limits(blocks=64, decode_rows=1, tokens=3))
    run.add(*(request(n, 10 * n) for n in (1, 9, 9)))
    run.finish()


# Blocks


def test_blocks_are_taken_as_a_request_grows() -> None:
    run = Run()
    growing = request(9, new=9)
    run.add(growing)
    assert [len(run.step().steps[0].row.blocks) for _ in range(9)] == [2, 3, 3, 3, 3, 4, 4, 4, 4]


def test_a_session_that_cannot_hold_one_context_is_refused() -> None:
    with pytest.raises(OptionError, match=r"ctx_len 32 needs 8 blocks of 4 tokens, but the session has 7\."):
        Scheduler(paged_limits(blocks=7))
    with pytest.raises(OptionError, match=r"ctx_len 33 needs 9 blocks of 4 tokens, but the session has 8\."):
        Scheduler(paged_limits(blocks=8, ctx_len=33))
    Scheduler(paged_limits(blocks=8))


def test_nobody_enters_who_would_soon_be_sent_away() -> None:
    run = Run(paged_limits(blocks=11))
    run.add(request(16, 1, new=16), request(16, 50, new=16), request(4, 90, new=1))
    run.step()
    assert (run.scheduler.running, run.scheduler.waiting) == (2, 1)  # they will soon need 5, 5 and 2
    run.add(request(1, 99, new=1))
    run.step()
    assert run.scheduler.waiting == 2  # there is a block for the last, but it has to wait for its turn


def test_requests_enter_that_will_not_grow() -> None:
    run = Run(paged_limits(blocks=8))
    run.add(request(15, 1, new=1), request(15, 50, new=1))
    run.step()
    assert run.scheduler.running == 2
    run.finish()


def test_requests_enter_that_share_what_is_there() -> None:
    run = Run(paged_limits(blocks=9))
    run.add(request(20, 100, new=8))
    run.steps(3)
    run.add(request(20, 100, new=3))  # it lacks two blocks, and two are left beside the seven of the other
    run.step()
    assert run.scheduler.running == 2
    run.finish()


def test_an_empty_plan_means_that_nothing_is_to_do() -> None:
    """Also if a policy wants only one for whom there are no blocks."""
    wanted: list[Request] = []
    run = Run(paged_limits(blocks=8), policy=lambda ready, _: [s for s in ready if s.request in wanted] or ready[:1])
    early, late = request(4, 1, new=28), request(16, 50, new=9)
    run.add(early, late)
    wanted[:] = [late]
    run.steps(1)
    wanted[:] = [early]
    while run.scheduler.counts.blocks.free or run.scheduler.counts.blocks.cached:
        run.step()
    wanted[:] = [late]
    while not run.scheduler.preemptions:
        assert run.step().steps
    run.finish()


def test_the_last_of_the_lowest_priority_is_sent_back_and_returns_first() -> None:
    run = Run(paged_limits(blocks=9))
    important, early, late = (request(8, n, new=20, priority=p) for n, p in ((1, 1), (50, 0), (100, 0)))
    run.add(early, late, important)
    while not run.scheduler.preemptions:
        run.step()
    assert set(run.scheduler._running) == {important, early}
    latest = request(1, 150, new=1)
    run.add(latest)
    while not latest.finished:
        run.step()
        assert late in run.scheduler._running or late.finished or not latest.generated
    run.finish()


def test_what_was_sent_back_is_computed_only_as_far_as_its_blocks_are_gone() -> None:
    run = Run()
    one = request(14, new=9)
    run.add(one)
    for _ in range(6):
        run.step()
    run.scheduler._send_back(run.scheduler._running[one])
    row = run.step().steps[0].row
    assert (row.start, len(row.tokens)) == (16, 3)
    assert one.cached_tokens == 0  # its prompt was computed for it
    run.finish()


def test_equal_prompts_share_as_soon_as_the_first_is_computed() -> None:
    run = Run()
    first, second = request(17, new=1), request(17, new=1)
    run.add(first, second)
    assert run.steps(3) == [{first: 8, second: 8}, {first: 8, second: 8}, {first: 1, second: 1}]
    assert run.scheduler.counts.blocks.cached == 4
    third, fourth = request(29, new=1), request(29, new=1)
    run.add(third)
    run.step()
    run.add(fourth)
    plan = run.step()
    assert {step.request: step.row.start for step in plan.steps} == {third: 24, fourth: 24}


def test_blocks_of_different_salts_are_apart() -> None:
    run = Run()
    run.add(request(16, new=1, salt="a"))
    run.finish()
    run.add(request(16, new=1, salt="b"), request(16, new=1, salt="a"))
    assert sorted(step.row.start for step in run.step().steps) == [0, 15]


def test_no_prefix_is_shared_without_the_cache_or_without_shareable_blocks() -> None:
    for run in (Run(prefix_cache=False), Run(paged_limits(blocks=64, shareable=False))):
        for _ in range(2):
            run.add(request(16, new=1))
            assert run.step().steps[0].row.start == 0
            run.finish()
        assert run.scheduler.counts.blocks.cached == run.scheduler.counts.hit_tokens == 0


def test_hits_and_lookups() -> None:
    run = Run()
    for _ in range(3):
        run.add(request(18, new=1))
        run.finish()
    counts = run.scheduler.counts
    assert (counts.lookup_tokens, counts.hit_tokens) == (54, 32)


# Samples of one prompt


def test_samples_wait_for_the_prompt_and_take_it_over() -> None:
    run = Run()
    first = request(18, new=5)
    second, third = first.fork(), first.fork()
    run.add(first, second, third)
    assert run.steps(3) == [{first: 8}, {first: 8}, {first: 2}]
    plan = run.step()
    assert [(step.request, step.row.start) for step in plan.steps] == [(first, 18), (second, 17), (third, 17)]
    assert len({step.row.blocks[4] for step in plan.steps}) == 3 and len(plan.copies) == 2
    assert len({step.row.blocks[:4] for step in plan.steps}) == 1
    run.finish()
    assert first.generated == second.generated == third.generated


def test_no_copy_is_made_of_a_block_that_would_be_overwritten_as_a_whole() -> None:
    run = Run()
    first = request(17, new=5)
    run.add(first, first.fork())
    run.finish()
    assert not run.session.copies


@pytest.mark.parametrize("event", ["cancelled", "sent back", "finished", "cancelled in the queue", "never added"])
def test_samples_run_by_themselves_when_the_first_is_gone(event: str) -> None:
    run = Run(paged_limits(blocks=64, slots=2))
    first = request(18, new=1 if event == "finished" else 5)
    second = first.fork()
    run.add(*([] if event == "never added" else [first]), second)
    if event in ("cancelled", "sent back"):
        run.step()
    if event.startswith("cancelled"):
        run.scheduler.release(first)
    if event == "sent back":
        run.scheduler._send_back(run.scheduler._running[first])
        assert list(run.steps(1)[0]) == [first, second]
    run.finish()
    assert len(second.generated) == second.params.max_new_tokens


def test_a_sample_that_was_sent_back_has_its_own_tokens() -> None:
    run = Run()
    first = request(6, new=20)
    second = first.fork()
    run.add(first, second)
    run.steps(3)
    second.generated[:] = [7] * len(second.generated)  # as another seed would have given
    run.scheduler._send_back(run.scheduler._running[second])
    run.steps(3)  # what lies in its blocks is checked
    run.finish()


def test_a_sample_cancelled_while_it_waits() -> None:
    run = Run()
    first = request(18, new=1)
    second, third = first.fork(), first.fork()
    run.add(first, second, third)
    run.step()
    run.scheduler.release(second)
    run.finish()
    assert not second.generated and third.generated


def test_samples_without_shareable_blocks_do_not_wait() -> None:
    run = Run(paged_limits(blocks=64, shareable=False))
    first = request(8, new=2)
    run.add(first, first.fork())
    assert list(run.steps(1)[0].values()) == [8, 8]
    run.finish()


def test_a_fork_is_like_the_other() -> None:
    other = request(8, priority=2, deadline=3.0, salt="salt", eos_ids=(5,))
    fork = other.fork()
    assert (fork.prompt, fork.params, fork.priority, fork.deadline, fork.salt, fork.eos_ids, fork.like) == (
        *(other.prompt, other.params, 2, 3.0, "salt", (5,)),
        other,
    )
    assert fork.id != other.id and other.fork(SamplingParams(seed=1)).params.seed == 1


def test_a_sample_must_have_the_same_prompt() -> None:
    with pytest.raises(OptionError, match="another prompt"):
        Run().add(request(8, like=request(9)))
    with pytest.raises(OptionError, match="another prompt"):
        Run().add(request(8, like=request(8, salt="other")))


# Room for drafts


def test_room_for_drafts() -> None:
    run = Run(lookahead=9)
    one = request(9, new=8)
    run.add(one)
    plans = [run.step() for _ in range(9)]
    assert [plan.steps[0].room for plan in plans] == [0, 3, 3, 3, 3, 3, 2, 1, 0]  # logits 4; the last tokens need less
    short = Run(paged_limits(blocks=64, chunk=2), lookahead=9)
    short.add(request(1))
    assert [short.step().steps[0].room for _ in range(4)] == [1, 1, 1, 0]
    for step in (plan.steps[0] for plan in plans):
        assert len(step.row.blocks) * 4 >= step.row.start + len(step.row.tokens) + step.room


def test_drafts_get_the_tokens_and_rows_that_are_left() -> None:
    for tokens, rooms in ((8, [3, 2, 0]), (16, [3, 3, 0])):
        run = Run(paged_limits(blocks=64, chunk=16, tokens=tokens, prefill_rows=2), lookahead=3)
        run.add(*(request(2, 10 * n, new=9) for n in range(3)))
        run.steps(2)
        assert [step.room for step in run.step().steps] == rooms
        run.add(request(30, 100))
        assert [step.room for step in run.step().steps] == [0, 0, 0, 0]


def test_nobody_loses_anything_for_drafts() -> None:
    rows = []
    for lookahead in (0, 3):
        run = Run(paged_limits(blocks=9), lookahead=lookahead)
        run.add(*(request(8, 50 * n, new=20) for n in range(3)))
        run.finish()
        assert run.scheduler.preemptions
        rows.append([[(row.slot, row.start, row.tokens) for row in batch.rows] for batch in run.session.batches])
    assert rows[0] == rows[1]


def test_no_drafts_where_nothing_can_be_taken_back() -> None:
    run = Run(paged_limits(blocks=64, shareable=False), lookahead=3)
    run.add(request(2, new=5))
    assert {run.step().steps[0].room for _ in range(4)} == {0}


def test_blocks_for_rejected_drafts_are_given_back() -> None:
    run = Run(paged_limits(size=1, blocks=40), lookahead=3)
    run.add(request(2, new=9))
    run.step()
    run.step()
    assert run.scheduler.counts.blocks.used == 4  # of the tokens that were accepted, and no more


# Ends at any moment


@pytest.mark.parametrize("moment", range(6))
def test_a_request_may_end_between_planning_and_recording(moment: int) -> None:
    run = Run(paged_limits(blocks=12))
    one, other = request(14, new=5), request(14, 50, new=5)
    run.add(one, other)
    for _ in range(moment):
        run.step()
    plan = run.scheduler.next_batch()
    run.session.run(plan.batch)
    run.scheduler.release(one)
    run.scheduler.release(one)
    run.scheduler.advance(Plan(tuple(step for step in plan.steps if not step.row.logits)))
    check_blocks(run.scheduler, run.session)
    run.finish()


def test_an_abandoned_plan_starts_anew() -> None:
    run = Run()
    one, other = request(14, new=5), request(3, 50, new=5)
    run.add(one, other)
    run.step()
    run.scheduler.abandon(run.scheduler.next_batch())
    assert (run.scheduler.running, run.scheduler.preemptions) == (0, 0)
    assert [step.request for step in run.step().steps] == [one, other]
    run.finish()


def test_an_abandoned_plan_without_blocks() -> None:
    scheduler = Scheduler(Limits(slots=3, chunk=4, ctx_len=16, decode_rows=2, prefill_rows=1))
    one, other = request(6), request(3)
    scheduler.add(one)
    scheduler.add(other)
    scheduler.advance(scheduler.next_batch())
    scheduler.abandon(scheduler.next_batch())
    assert (scheduler.waiting, scheduler.running) == (1, 1)
    assert [(s.request, s.row.start) for s in scheduler.next_batch().steps] == [(other, 0)]


def test_places_of_sessions_without_blocks() -> None:
    places = places_for(Limits(slots=1, chunk=4, ctx_len=16, decode_rows=1, prefill_rows=1))
    assert isinstance(places, Slots) and not places.shareable and places.counts.blocks.total == 0
