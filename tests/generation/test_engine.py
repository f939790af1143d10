from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from QEfficient.devices import Batch
from QEfficient.errors import DeviceError, OptionError, PromptError
from QEfficient.generation.engine import Engine
from QEfficient.generation.request import Request, output_of
from QEfficient.specs import SamplingParams

Greedy = Callable[[tuple[int, ...], int], list[int]]
CHUNK, CONTEXT = 8, 32


def prompt(length: int, first: int = 1) -> tuple[int, ...]:
    return tuple(range(first, first + length))


def request(ids: tuple[int, ...], *eos: int, **params: Any) -> Request:
    return Request(ids, SamplingParams(**params), eos)


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, CONTEXT - 1])
def test_chunk_boundaries(engine: Engine, greedy: Greedy, length: int) -> None:
    (output,) = engine.generate([request(prompt(length), max_new_tokens=4)])
    count = min(4, CONTEXT - length)
    assert list(output.generated_ids) == greedy(prompt(length), count)
    assert output.finish_reason == "length"


def test_more_prompts_than_slots(engine: Engine, greedy: Greedy) -> None:
    prompts = [prompt(1 + number % 20, number) for number in range(17)]
    counts = [1 + number % 7 for number in range(17)]
    outputs = engine.generate([request(p, max_new_tokens=c) for p, c in zip(prompts, counts, strict=True)])
    assert [list(output.generated_ids) for output in outputs] == [
        greedy(p, c) for p, c in zip(prompts, counts, strict=True)
    ]
    assert engine.idle


def test_order_of_requests_does_not_matter(engine: Engine) -> None:
    prompts = [prompt(1 + number, 10 * number) for number in range(12)]
    shuffled = random.Random(0).sample(prompts, len(prompts))

    def tokens_by_prompt(order: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
        outputs = engine.generate([request(p, max_new_tokens=5) for p in order])
        return {output.prompt_ids: output.generated_ids for output in outputs}

    assert tokens_by_prompt(prompts) == tokens_by_prompt(shuffled)


def test_engine_keeps_going_after_a_generate(engine: Engine, greedy: Greedy) -> None:
    for first in range(5):
        (output,) = engine.generate([request(prompt(9, first), max_new_tokens=3)])
        assert list(output.generated_ids) == greedy(prompt(9, first), 3)


def test_context_may_be_filled_exactly(engine: Engine, greedy: Greedy) -> None:
    (output,) = engine.generate([request(prompt(5))])
    assert list(output.generated_ids) == greedy(prompt(5), CONTEXT - 5)
    assert output.finish_reason == "length"
    fed = [row.start + len(row.tokens) for batch in engine.session.batches for row in batch.rows]  # type: ignore[attr-defined]
    assert max(fed) == CONTEXT - 1  # the last token, at the last position, is not fed


@pytest.mark.parametrize("which", [0, 1])
def test_ends_at_any_eos(engine: Engine, greedy: Greedy, which: int) -> None:
    tokens = greedy(prompt(5), 6)
    eos = (tokens[3], 1001) if which == 0 else (1001, tokens[3])
    (output,) = engine.generate([request(prompt(5), *eos, max_new_tokens=6)])
    assert list(output.generated_ids) == tokens[:4]
    assert output.finish_reason == "stop"


def test_first_token_may_end_it(engine: Engine, greedy: Greedy) -> None:
    (output,) = engine.generate([request(prompt(5), greedy(prompt(5), 1)[0])])
    assert len(output.generated_ids) == 1 and output.finish_reason == "stop"


def test_stop_ids_and_ignored_eos(engine: Engine, greedy: Greedy) -> None:
    tokens = greedy(prompt(5), 6)
    params = {"ignore_eos": True, "stop_token_ids": (tokens[4],), "max_new_tokens": 6}
    (output,) = engine.generate([request(prompt(5), tokens[1], **params)])
    assert list(output.generated_ids) == tokens[:5] and output.finish_reason == "stop"


def test_eos_as_the_last_allowed_token_is_a_stop(engine: Engine, greedy: Greedy) -> None:
    tokens = greedy(prompt(5), 3)
    (output,) = engine.generate([request(prompt(5), tokens[2], max_new_tokens=3)])
    assert output.finish_reason == "stop"


def test_cancel_running_and_waiting(engine: Engine, greedy: Greedy) -> None:
    requests = [request(prompt(12, number), max_new_tokens=8) for number in range(6)]
    for each in requests:
        engine.submit(each)
    for _ in range(3):
        engine.step()
    engine.cancel(requests[0])
    engine.cancel(requests[5])
    engine.run()
    assert [r.finish_reason for r in requests] == ["cancelled", *["length"] * 4, "cancelled"]
    assert requests[5].generated == []
    for each in requests[1:5]:
        assert each.generated == greedy(each.prompt, 8)
    engine.cancel(requests[1])
    assert requests[1].finish_reason == "length"  # ended already


def test_stream_yields_every_token_once(engine: Engine) -> None:
    requests = [request(prompt(3, number), max_new_tokens=4) for number in range(5)]
    seen: dict[Request, list[int]] = {each: [] for each in requests}
    ends = {}
    for event in engine.stream(requests):
        assert event.request not in ends
        seen[event.request].extend(event.tokens)
        if event.finish_reason:
            ends[event.request] = event.finish_reason
    assert seen == {each: each.generated for each in requests}
    assert set(ends.values()) == {"length"}


def test_closing_a_stream_cancels_what_is_left(engine: Engine) -> None:
    requests = [request(prompt(3)) for _ in range(5)]
    stream = engine.stream(requests)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.idle
    assert {each.finish_reason for each in requests} == {"cancelled"}


def test_cancelled_inside_a_stream(engine: Engine) -> None:
    requests = [request(prompt(3, number), max_new_tokens=9) for number in range(2)]
    for event in engine.stream(requests):
        if event.request is requests[0]:
            engine.cancel(requests[0])
    assert [r.finish_reason for r in requests] == ["cancelled", "length"]
    assert len(requests[0].generated) == 1


def test_cancelled_while_its_tokens_are_chosen(engine: Engine) -> None:
    ended = request(prompt(3))
    decoding: Any = engine._decoding
    accept = decoding.accept
    decoding.accept = lambda plan, logits: engine.cancel(ended) or accept(plan, logits)
    engine.submit(ended)
    assert engine.step() == [] and engine.idle
    assert ended.finish_reason == "cancelled" and not ended.generated and ended.timings.first_token is None


def test_two_streams_share_an_engine(engine: Engine, greedy: Greedy) -> None:
    other = request(prompt(4, 50), max_new_tokens=3)
    engine.submit(other)
    engine.generate([request(prompt(9), max_new_tokens=20)])
    engine.run()
    assert other.generated == greedy(other.prompt, 3)


def test_one_prompt_that_does_not_fit_stops_all(engine: Engine) -> None:
    requests = [request(prompt(3)), request(prompt(CONTEXT))]
    with pytest.raises(PromptError):
        engine.generate(requests)
    assert engine.idle and not requests[0].generated


def test_failing_device_leaves_no_request_behind(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Batch) -> None:
        raise DeviceError("the card fell out.")

    monkeypatch.setattr(engine.session, "run", fail)
    requests = [request(prompt(3)) for _ in range(5)]
    with pytest.raises(DeviceError):
        engine.generate(requests)
    assert engine.idle
    assert {each.finish_reason for each in requests} == {"cancelled"}


def test_a_request_runs_once(engine: Engine) -> None:
    once = request(prompt(3), max_new_tokens=1)
    engine.generate([once])
    with pytest.raises(OptionError, match="submitted before"):
        engine.submit(once)


def test_a_request_of_another_stream_is_left_alone(engine: Engine, greedy: Greedy) -> None:
    running = request(prompt(3), max_new_tokens=2)
    engine.submit(running)
    with pytest.raises(OptionError):
        engine.generate([running])
    engine.run()
    assert running.generated == greedy(prompt(3), 2)


def test_step_without_work(engine: Engine) -> None:
    assert engine.step() == []


@pytest.mark.parametrize("mates", [0, 1, 6])
def test_seeded_tokens_do_not_depend_on_batch_mates(engine: Engine, mates: int) -> None:
    def seeded() -> Request:
        return request(prompt(6), temperature=5.0, seed=7, max_new_tokens=8)

    (alone,) = engine.generate([seeded()])
    others = [request(prompt(3, n), temperature=5.0, seed=n, max_new_tokens=3 + n) for n in range(mates)]
    together = engine.generate([*others, seeded()])
    assert together[-1].generated_ids == alone.generated_ids


def test_seeds_differ(engine: Engine) -> None:
    requests = [request(prompt(6), temperature=5.0, seed=seed, max_new_tokens=8) for seed in (1, 2, None, None)]
    assert len({output.generated_ids for output in engine.generate(requests)}) == 4


def test_timings(engine: Engine) -> None:
    requests = [request(prompt(10), max_new_tokens=4) for _ in range(5)]
    for output in engine.generate(requests):
        t = output.timings
        assert t.submitted is not None and t.started is not None and t.first_token is not None
        assert t.finished is not None and t.time_to_first_token is not None
        assert t.submitted <= t.started < t.first_token < t.finished
        assert 0 < t.prefill <= t.time_to_first_token


def test_output_of_an_unfinished_request_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="not finished"):
        output_of(request(prompt(3)))
