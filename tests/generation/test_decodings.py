"""Decodings that try tokens ahead give the tokens of plain decoding, whatever is asked for and whatever happens."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from paged_world import CheckedSession, PlannedError, check_blocks, check_nothing_held, paged_limits

from QEfficient.devices import Batch, Limits, Row
from QEfficient.devices.null import NOTHING, NullSession, null_next_token
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.draft_model import DraftModel
from QEfficient.generation.decoding.one_token import OneToken
from QEfficient.generation.decoding.prompt_lookup import PromptLookup
from QEfficient.generation.decoding.selection import DecodingChoice, make_decoding
from QEfficient.generation.decoding.speculation import Speculation
from QEfficient.generation.engine import Engine
from QEfficient.generation.masks import packed
from QEfficient.generation.request import Request, RequestOutput, output_of
from QEfficient.generation.text import TextGenerator
from QEfficient.specs import CompileSpec, SamplingParams

WORDS = 20
END = 7


class RepeatingSession(CheckedSession):
    """Mostly goes on as it did after the same token before, so that what was said tells what comes."""

    def __init__(self, limits: Limits, surprises: int = 8) -> None:
        super().__init__(limits)
        self._surprises = surprises
        self.rows: list[Row] = []

    def _logits(self, row: Row) -> list[np.ndarray]:
        self.rows.append(row)
        end = row.start + len(row.tokens)
        history = [int(self._memory[self._place(row, position)]) for position in range(end)]
        assert min(history) >= 0, "a position is read that nobody wrote"
        return [np.roll(self._ramp, self._next(history[:stop])) * 0.5 for stop in range(end - row.logits + 1, end + 1)]

    def _next(self, history: Sequence[int]) -> int:
        surprised = self._surprises and null_next_token(history, self._surprises) == 0
        return null_next_token(history if surprised else history[-1:], WORDS)


class CountingMask:
    """Forbids a token that depends on all before; wants to hear each token once, and none again."""

    def __init__(self) -> None:
        self._heard: list[int] = []

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        assert list(generated[: len(self._heard)]) == self._heard, "what was said is taken back"
        self._heard = list(generated)
        assert END not in generated, "the end was said before"
        return packed(set(range(WORDS * 2)) - {sum(generated) % WORDS})


LIMITS = paged_limits(blocks=64, chunk=16, tokens=32, logits=16, ctx_len=64)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 2},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "seed": 6, "top_k": 5, "logprobs": 0},
    {"temperature": 1.5, "seed": 7, "top_p": 0.8, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.1, "logprobs": 1},
    {"presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 1.0, "seed": 8, "frequency_penalty": 0.3, "min_new_tokens": 9},
    {"min_new_tokens": 12, "logit_bias": {3: 0.6, END: 0.3}},
    {"stop_token_ids": (11,)},
    {"max_new_tokens": None, "max_length": 41},
    {"prompt_logprobs": 1, "logprobs": 1},
    {"temperature": 1.0, "min_p": 0.05, "seed": 9, "ignore_eos": True},
)
"""Also how requests are made: with a mask or without."""


def asked(number: int, masked: bool = False, **fields: Any) -> Request:
    """The same request for the same number."""
    own = random.Random(number)
    phrase = [own.randrange(WORDS) for _ in range(own.choice((3, 5, 9)))]
    prompt = (phrase * 9)[: own.choice((1, 2, 9, 20, 30))]
    params = SamplingParams(**{"max_new_tokens": 30, **KINDS[number % len(KINDS)]})
    mask = CountingMask() if masked else None
    return Request(tuple(prompt), params, (END,), mask=mask, **fields)


def told(output: RequestOutput) -> tuple[Any, ...]:
    return output.generated_ids, output.finish_reason, output.logprobs, output.prompt_logprobs


def draft_session(surprises: int = 8, **changes: Any) -> RepeatingSession:
    return RepeatingSession(replace(LIMITS, **changes), surprises)


DECODINGS: dict[str, Callable[[], Speculation]] = {
    "prompt lookup": lambda: PromptLookup(10, adaptive=False),
    "prompt lookup, adaptive": lambda: PromptLookup(10),
    "draft model": lambda: DraftModel(draft_session(0), 6, adaptive=False),
    "draft model, adaptive": lambda: DraftModel(draft_session(0), 6),
    "small draft model": lambda: DraftModel(draft_session(0, slots=2, ctx_len=24, tokens=5), adaptive=False),
    "draft model short of blocks": lambda: DraftModel(
        RepeatingSession(paged_limits(blocks=9, chunk=8), 0), adaptive=False
    ),
    "draft model by rows": lambda: DraftModel(
        draft_session(0, tokens=None, decode_rows=2, prefill_rows=1), adaptive=False
    ),
}


@pytest.fixture(params=DECODINGS.values(), ids=DECODINGS)
def decoding(request: pytest.FixtureRequest) -> Speculation:
    made: Speculation = request.param()
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("together", [1, 13])
def test_tokens_are_those_of_plain_decoding(decoding: Speculation, together: int, masked: bool) -> None:
    plain, engine = Engine(RepeatingSession(LIMITS)), Engine(RepeatingSession(LIMITS), decoding)
    for first in range(0, 26, together):
        numbers = range(first, first + together)
        expected = plain.generate([asked(number, masked) for number in numbers])
        found = engine.generate([asked(number, masked) for number in numbers])
        assert [told(output) for output in found] == [told(output) for output in expected]
    assert engine.statistics.generated == plain.statistics.generated
    assert engine.statistics.drafted >= engine.statistics.accepted > 0
    assert engine.statistics.sampled_rows < plain.statistics.sampled_rows
    check_nothing_held(engine.scheduler)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens(decoding: Speculation, seed: int) -> None:
    """Requests come, share, fork, give way, are cancelled and sent back; sessions fail."""
    limits = replace(LIMITS, paging=paged_limits(blocks=20).paging)
    engine, own = Engine(RepeatingSession(limits), decoding), random.Random(seed)
    session, scheduler = engine.session, engine.scheduler
    assert isinstance(session, RepeatingSession)
    requests: dict[Request, int] = {}
    for step in range(3000):
        if step < 120:
            for _ in range(own.choice((0, 0, 0, 1, 2))):
                number = own.randrange(100)
                one = asked(number, salt=own.choice(("", "", "other")), priority=own.choice((0, 0, 1)))
                engine.submit(one)
                requests[one] = number
                if own.random() < 0.2:
                    again = replace(asked(number, salt=one.salt), like=one)
                    engine.submit(again)
                    requests[again] = number
        if step < 120 and own.random() < 0.05:
            session.failures = [own.choice(("before", "copy"))]
        with suppress(PlannedError):
            engine.step()
        session.failures.clear()
        check_blocks(scheduler, session)
        if step < 120 and own.random() < 0.1:
            engine.cancel(own.choice(list(requests)))
        if scheduler.running and own.random() < 0.03:
            scheduler._send_back(own.choice(list(scheduler._running.values())))
        if step >= 120 and engine.idle:
            break
    check_nothing_held(scheduler)
    plain = Engine(RepeatingSession(LIMITS))
    for one, number in requests.items():
        (expected,) = plain.generate([asked(number)])
        if one.finish_reason == "cancelled":
            assert list(expected.generated_ids[: len(one.generated)]) == one.generated
        else:
            assert told(output_of(one)) == told(expected)
    assert engine.statistics.preemptions and engine.statistics.cache.hit_tokens
    assert engine.statistics.accepted > 0


def test_a_draft_model_that_knows_everything_is_always_right() -> None:
    """So its state is what it should be: after rejections too, which the model's own end brings about."""
    decoding = DraftModel(draft_session(), 6, adaptive=False)
    engine = Engine(RepeatingSession(LIMITS), decoding)
    greedy = [Request(asked(n).prompt, SamplingParams(max_new_tokens=25)) for n in range(12)]
    engine.generate(greedy)
    assert engine.statistics.acceptance == 1.0 and engine.statistics.drafted > 100
    drawing = [SamplingParams(max_new_tokens=25, temperature=0.5, seed=seed) for seed in range(len(greedy))]
    engine.generate([Request(one.prompt, params) for one, params in zip(greedy, drawing, strict=True)])
    assert engine.statistics.acceptance < 1.0
    before = engine.statistics
    engine.generate([Request(one.prompt[:5], SamplingParams(max_new_tokens=25)) for one in greedy])
    after = engine.statistics
    assert after.accepted - before.accepted == after.drafted - before.drafted > 0


def test_a_draft_model_gives_places_back() -> None:
    session = draft_session(0, slots=4)
    decoding = DraftModel(session, 4, adaptive=False)
    engine = Engine(RepeatingSession(LIMITS), decoding)
    for round_ in range(4):
        requests = [asked(number) for number in range(13)]
        for one in requests:
            engine.submit(one)
        while not engine.idle:
            engine.step()
            if round_ == 2 and requests:
                engine.cancel(requests.pop())
            assert decoding.held <= 4
    (last,) = engine.generate([Request((1, 2, 3, 1, 2), SamplingParams(max_new_tokens=9))])
    assert decoding.held == 1
    places: Any = decoding._places
    (held,) = decoding._held.values()
    assert places.counts.blocks.used == len(held.blocks) and len(places._slots) == 3
    assert last.finish_reason == "length"


class RestingSession(RepeatingSession):
    """Can give its device to others, and has forgotten everything then."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.owner: Callable[[], bool] = bool
        self.during: Callable[[], object] = bool

    def run(self, batch: Batch) -> np.ndarray:
        self.during()
        return super().run(batch)

    def offer(self, owner: Callable[[], bool]) -> None:
        self.owner = owner

    def rest(self) -> bool:
        self._memory[:] = NOTHING
        return True


def test_a_draft_model_without_requests_gives_way() -> None:
    """Not before, and it drafts from the beginning then, as well as ever: it is the model itself."""
    drafts = RestingSession(LIMITS)
    engine = Engine(RepeatingSession(LIMITS), DraftModel(drafts, 6, adaptive=False))
    told_first: list[tuple[Any, ...]] = []
    for _ in range(3):
        requests = [Request(asked(n).prompt, SamplingParams(max_new_tokens=25)) for n in range(9)]
        for one in requests:
            engine.submit(one)
        while not engine.idle:
            engine.step()
            assert engine.idle or not drafts.owner(), "requests are on their way"
        found = [told(output_of(one)) for one in requests]
        told_first = told_first or found
        assert found == told_first and drafts.owner()
    assert engine.statistics.acceptance == 1.0 and engine.statistics.drafted > 100


def test_a_draft_model_that_runs_does_not_give_way() -> None:
    """Although the only request is cancelled meanwhile, as another thread may do."""
    drafts = RestingSession(LIMITS)
    engine = Engine(RepeatingSession(LIMITS), DraftModel(drafts, 6, adaptive=False))
    only, gave_way = Request((1, 2, 3), SamplingParams(max_new_tokens=25)), []
    drafts.during = lambda: (engine.cancel(only), gave_way.append(drafts.owner()))
    engine.generate([only])
    assert only.finish_reason == "cancelled" and gave_way and not any(gave_way)
    assert drafts.owner()


@pytest.mark.parametrize(
    ("shape", "reason", "advice"),
    [
        ({}, "gives the logits of one token", "Compile it with num_speculative_tokens, or"),
        ({"prefill_only": False}, "gives the logits of one token", "Compile it with num_speculative_tokens, or"),
        ({"num_speculative_tokens": (0,)}, r"num_speculative_tokens=\[0\], to try none", "with a larger number"),
        (
            {"num_speculative_tokens": (3,), "prefill_only": True},
            "are the calls for prompts",
            "without prefill_only, and",
        ),
        ({"prefill_only": True}, "are the calls for prompts", "without prefill_only, and with num_speculative_tokens"),
    ],
)
def test_what_cannot_try_ahead_says_how_it_was_compiled(shape: dict[str, Any], reason: str, advice: str) -> None:
    spec = CompileSpec(1, 8, 32, **shape)
    compiled: Any = SimpleNamespace(device="reference", spec=spec)
    with pytest.raises(OptionError, match=f"device 'reference': this program .*{reason}.*{advice}"):
        make_decoding(DecodingChoice("prompt_lookup"), compiled, NullSession(spec, WORDS))


@pytest.mark.parametrize("shape", [{"num_speculative_tokens": (0, 3)}, {"num_speculative_tokens": (3,)}])
def test_what_can_try_ahead_does(shape: dict[str, Any]) -> None:
    spec = CompileSpec(1, 8, 32, **shape)
    compiled: Any = SimpleNamespace(device="reference", spec=spec)
    made = make_decoding(DecodingChoice("prompt_lookup"), compiled, NullSession(spec, WORDS))
    assert isinstance(made, PromptLookup)


@pytest.mark.parametrize("failing", ["model", "draft"])
def test_a_failed_step_changes_no_draw(failing: str) -> None:
    """Numbers are drawn when all logits are there."""
    drafts, session = draft_session(0), RepeatingSession(LIMITS)
    engine = Engine(session, DraftModel(drafts, 4, adaptive=False))
    requests = [asked(number) for number in range(13)]
    for one in requests:
        engine.submit(one)
    own = random.Random(0)
    while not engine.idle:
        broken = session if failing == "model" else drafts
        broken.failures = ["before"] if own.random() < 0.1 else []
        with suppress(PlannedError):
            engine.step()
        broken.failures = []
    plain = Engine(RepeatingSession(LIMITS))
    expected = plain.generate([asked(number) for number in range(13)])
    assert engine.statistics.failed_steps
    assert [told(output_of(one)) for one in requests] == [told(output) for output in expected]


def test_another_decoding_at_any_step_changes_no_token() -> None:
    engine, own = Engine(RepeatingSession(LIMITS)), random.Random(0)
    decodings = [OneToken(), *(make() for make in DECODINGS.values())]
    requests = [asked(number, masked=True) for number in range(26)]
    for one in requests:
        engine.submit(one)
    while not engine.idle:
        engine.use(own.choice(decodings))
        engine.step()
    plain = Engine(RepeatingSession(LIMITS))
    expected = plain.generate([asked(number, masked=True) for number in range(26)])
    assert [told(output_of(one)) for one in requests] == [told(output) for output in expected]
    assert engine.statistics.accepted > 0
    check_nothing_held(engine.scheduler)
    drafted = engine.statistics.drafted
    engine.use(OneToken())
    engine.generate([asked(number) for number in range(26)])
    assert engine.statistics.drafted == drafted


class FailingMask(CountingMask):
    """Fails once, in the middle."""

    failed = 0

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        bits = super().mask(generated)
        if len(generated) == 9 and not self.failed:
            self.failed += 1
            raise PlannedError("mask")
        return bits


def test_a_mask_that_fails_loses_no_token() -> None:
    engine = Engine(RepeatingSession(LIMITS), PromptLookup(10, adaptive=False))
    failing, others = asked(0), [asked(1), asked(5), asked(6)]
    failing.mask = FailingMask()
    for one in (failing, *others):
        engine.submit(one)
    while not engine.idle:
        with suppress(PlannedError):
            engine.step()
    assert failing.mask.failed == 1
    plain = Engine(RepeatingSession(LIMITS))
    expected = plain.generate([asked(0, masked=True), asked(1), asked(5), asked(6)])
    assert [told(output_of(one)) for one in (failing, *others)] == [told(output) for output in expected]


@pytest.mark.parametrize("make", [PromptLookup, lambda: DraftModel(draft_session(0))], ids=["lookup", "draft model"])
def test_nothing_is_kept_of_requests_that_ended(make: Callable[[], Speculation]) -> None:
    decoding: Any = make()
    engine = Engine(RepeatingSession(LIMITS), decoding)
    for number in range(0, 180, 6):
        engine.generate([asked(n) for n in range(number, number + 6)])
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, Request)]
    assert len(kept) <= 2 * LIMITS.slots
    tables = [value for value in vars(decoding).values() if hasattr(value, "__len__")]
    assert all(len(table) <= LIMITS.slots for table in tables)
    assert len(decoding._lengths._own) <= LIMITS.slots


def test_other_vocabularies_are_refused() -> None:
    other = draft_session(0)
    other._ramp = other._ramp[:500]
    engine = Engine(RepeatingSession(LIMITS), DraftModel(other, adaptive=False))
    with pytest.raises(OptionError, match=r"500 tokens, but the model has 1,000"):
        engine.generate([asked(0)])


def test_draft_sessions_must_go_back() -> None:
    with pytest.raises(OptionError, match="cannot go back"):
        DraftModel(CheckedSession(paged_limits(shareable=False)))


@pytest.mark.parametrize("lookahead", [0, -1, True, 2.0])
def test_lookahead_is_a_positive_number(lookahead: Any) -> None:
    with pytest.raises(OptionError, match="positive whole number"):
        PromptLookup(lookahead)


def test_room_ends_where_the_answer_must() -> None:
    """No token is computed that cannot be kept, however the end is said."""
    for ending in ({"max_new_tokens": 4}, {"max_new_tokens": None, "max_length": 24}):
        session = RepeatingSession(LIMITS)
        params = SamplingParams(**ending)  # type: ignore[arg-type]
        Engine(session, PromptLookup(10, adaptive=False)).generate([Request((1, 2, 3, 4) * 5, params)])
        assert max(row.start + len(row.tokens) for row in session.rows) <= 23


class Letters:
    """A tokenizer whose token is a letter."""

    eos_token_id = None

    def __call__(self, text: str, /, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(token + ord("a")) for token in token_ids)


def test_nothing_comes_behind_a_stop_string() -> None:
    """Though it was computed in the same step."""
    plain = TextGenerator(Engine(RepeatingSession(LIMITS, 0)), Letters())
    params = SamplingParams(max_new_tokens=30, logprobs=0, frequency_penalty=0.01)
    (before,) = plain.generate_texts(["a"], params)
    (whole,) = plain.generate_texts([before.text], params)
    found = 0
    for start in range(1, 25):
        stopping = replace(params, stop=(whole.text[start : start + 2],))
        engine = Engine(RepeatingSession(LIMITS, 0), PromptLookup(10, adaptive=False))
        tokens: list[int] = []
        text = TextGenerator(engine, Letters())
        requests = text.requests(text.encode(before.text), stopping)
        for event in text.stream(requests):
            tokens += event.tokens
        (expected,) = plain.generate_texts([before.text], stopping)
        output = output_of(requests[0])
        assert (*told(output), tuple(tokens)) == (*told(expected), expected.generated_ids)
        found += engine.statistics.generated > len(tokens)
    assert found


class EndingMask:
    """Allows everything, and remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        self.asked.append(tuple(generated))
        return packed(range(WORDS))


def test_nothing_is_chosen_behind_the_end() -> None:
    """Where the end is a draft that is right."""

    class Counting(RepeatingSession):
        def _next(self, history: Sequence[int]) -> int:
            return (history[-1] + 1) % WORDS

    params = SamplingParams(max_new_tokens=30, stop_token_ids=(4,))
    mask = EndingMask()
    one = Request((*range(WORDS), 0), params, mask=mask)
    engine = Engine(Counting(LIMITS), PromptLookup(15, adaptive=False))
    (output,) = engine.generate([one])
    assert output.finish_reason == "stop" and output.generated_ids == (1, 2, 3, 4)
    assert mask.asked == [(), (1,), (1, 2), (1, 2, 3)]
    assert engine.statistics.drafted > len(output.generated_ids)
