from __future__ import annotations

from collections.abc import Sequence

import pytest

from QEfficient.devices import Limits
from QEfficient.errors import PromptError
from QEfficient.generation.request import Request
from QEfficient.generation.scheduler import Plan, Scheduler, Step

LIMITS = Limits(slots=3, chunk=4, ctx_len=16, decode_rows=2, prefill_rows=1)


def request(length: int, priority: int = 0) -> Request:
    return Request(tuple(range(length)), priority=priority)


def shown(plan: Plan) -> list[tuple[int, list[int], int, bool]]:
    return [(s.row.slot, list(s.row.tokens), s.row.start, bool(s.row.logits)) for s in plan.steps]


def run(scheduler: Scheduler) -> Plan:
    """One step; every row that wants logits gets token 99."""
    plan = scheduler.next_batch()
    for sampled in plan.sampled:
        sampled.extend([99], LIMITS.ctx_len)
    scheduler.advance(plan)
    return plan


@pytest.mark.parametrize(
    ("length", "chunks"),
    [
        (1, [(0, 1)]),
        (3, [(0, 3)]),
        (4, [(0, 4)]),
        (5, [(0, 4), (4, 1)]),
        (8, [(0, 4), (4, 4)]),
        (9, [(0, 4), (4, 4), (8, 1)]),
    ],
)
def test_chunks_of_a_prompt(length: int, chunks: list[tuple[int, int]]) -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(request(length))
    for start, count in chunks:
        assert shown(run(scheduler)) == [(0, list(range(start, start + count)), start, start + count == length)]
    assert shown(run(scheduler)) == [(0, [99], length, True)]


def test_prefill_goes_first_and_decode_rows_take_turns() -> None:
    scheduler = Scheduler(LIMITS)
    for length in (2, 3, 6):
        scheduler.add(request(length))
    slots = [[step.row.slot for step in run(scheduler).steps] for _ in range(8)]
    assert slots[:4] == [[0], [1], [2], [2]]
    assert slots[4:] == [[0, 1], [2, 0], [1, 2], [0, 1]]  # three sequences on two rows


def test_first_prompt_is_through_before_the_second() -> None:
    scheduler = Scheduler(LIMITS)
    for length in (10, 10):
        scheduler.add(request(length))
    assert [run(scheduler).steps[0].row.slot for _ in range(6)] == [0, 0, 0, 1, 1, 1]


def test_more_requests_than_slots() -> None:
    scheduler = Scheduler(LIMITS)
    requests = [request(2) for _ in range(5)]
    for each in requests:
        scheduler.add(each)
    run(scheduler)
    assert (scheduler.running, scheduler.waiting) == (3, 2)
    scheduler.release(requests[1])
    run(scheduler)
    assert (scheduler.running, scheduler.waiting) == (3, 1)
    plan = run(scheduler)
    assert plan.steps[0].request is requests[3] and plan.steps[0].row.slot == 1


def test_priority_then_first_come() -> None:
    scheduler = Scheduler(Limits(1, 4, 16, 1, 1))
    requests = [request(2, priority) for priority in (0, 1, 0, 1)]
    for each in requests:
        scheduler.add(each)
    order = []
    while not scheduler.idle:
        plan = run(scheduler)
        order.append(plan.steps[0].request)
        scheduler.release(order[-1])
    assert order == [requests[index] for index in (1, 3, 0, 2)]


def test_release_from_queue_and_twice() -> None:
    scheduler = Scheduler(LIMITS)
    requests = [request(2) for _ in range(3)]
    for each in requests:
        scheduler.add(each)
    scheduler.release(requests[1])
    scheduler.release(requests[1])
    assert [run(scheduler).steps[0].request for _ in range(2)] == [requests[0], requests[2]]


def test_nothing_to_do() -> None:
    scheduler = Scheduler(LIMITS)
    assert scheduler.idle and scheduler.next_batch() == Plan(())


def test_prompts_that_never_fit() -> None:
    scheduler = Scheduler(Limits(1, 32, 4096, 1, 1))
    with pytest.raises(PromptError) as caught:
        scheduler.add(request(5210))
    assert str(caught.value) == (
        "prompt has 5,210 tokens, but the program was compiled for ctx_len 4,096. Compile again with a larger ctx_len."
    )
    with pytest.raises(PromptError, match="4,096 tokens, .* ctx_len 4,096, and a new token needs room too"):
        scheduler.add(request(4096))
    with pytest.raises(PromptError, match="empty"):
        scheduler.add(request(0))
    scheduler.add(request(4095))
    assert scheduler.waiting == 1


def test_rejected_drafts_are_computed_again() -> None:
    scheduler = Scheduler(LIMITS)
    drafting = request(2)
    scheduler.add(drafting)
    run(scheduler)
    plan = scheduler.next_batch()
    row = plan.steps[0].row
    longer = Plan((Step(drafting, type(row)(row.slot, (99, 7, 8), row.start)),))
    drafting.extend([7, 55], LIMITS.ctx_len)  # the draft 7 was right, 8 was not
    scheduler.advance(longer)
    assert shown(scheduler.next_batch()) == [(0, [55], 4, True)]


def test_policy_is_replaceable() -> None:
    def decode_first(ready: Sequence[Step], limits: Limits) -> Sequence[Step]:
        single = [step for step in ready if len(step.row.tokens) == 1]
        return single[: limits.decode_rows] or ready[: limits.prefill_rows]

    scheduler = Scheduler(LIMITS, decode_first)
    for _ in range(2):
        scheduler.add(request(2))
    assert [run(scheduler).steps[0].row.slot for _ in range(4)] == [0, 0, 0, 0]
