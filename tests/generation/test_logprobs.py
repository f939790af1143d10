"""What the model thought of the tokens: of the answer, and of the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from QEfficient.devices import Batch, Limits, Paging, Row
from QEfficient.devices.null import NullSession, PagedNullSession, null_next_token
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.one_token import OneToken
from QEfficient.generation.engine import Engine
from QEfficient.generation.logprobs import token_logprobs
from QEfficient.generation.recording import check_logprobs
from QEfficient.generation.request import Request, output_of
from QEfficient.generation.scheduler import Plan, Step
from QEfficient.specs import CompileSpec, SamplingParams

VOCABULARY = 1000
LIMITS = Limits(3, 8, 64, 3, 3, logits=8, paging=Paging(64, 3))


def test_values_are_those_of_torch() -> None:
    logits = (np.random.default_rng(0).normal(size=(50, 7000)) * 3).astype(np.float32)
    logits[4, 17] = -np.inf
    tokens = np.random.default_rng(1).integers(0, 7000, size=50)
    wanted = torch.tensor(logits).double().log_softmax(-1)
    top = wanted.topk(5)
    for row, found in enumerate(token_logprobs(logits, tokens.tolist(), 5)):
        assert found.token == tokens[row]
        assert found.logprob == pytest.approx(float(wanted[row, tokens[row]]), abs=1e-5)
        assert found.rank == int((wanted[row] > wanted[row, tokens[row]]).sum()) + 1
        assert [token for token, _ in found.top] == top.indices[row].tolist()
        assert [value for _, value in found.top] == pytest.approx(top.values[row].tolist(), abs=1e-5)


def test_more_than_there_are() -> None:
    logits = np.array([[0.0, -np.inf, 1.0]], np.float32)
    (found,) = token_logprobs(logits, [1], 20)
    assert found.logprob == -np.inf and found.rank == 3 and [token for token, _ in found.top] == [2, 0]


def asked(prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(prompt, SamplingParams(**{"max_new_tokens": 4, **params}))


def test_of_the_answer() -> None:
    engine = Engine(NullSession(CompileSpec(full_batch_size=3, prefill_seq_len=8, ctx_len=32), VOCABULARY))
    penalised = asked((5, 6), logprobs=2, presence_penalty=1.0, logit_bias={3: 1000.0})
    outputs = engine.generate([asked((1, 2), logprobs=3), asked((3, 4)), penalised, asked((7,), logprobs=0)])
    mass = float(np.log(np.exp(10.0 - np.arange(VOCABULARY)).sum()))
    for record, token in zip(outputs[0].logprobs, outputs[0].generated_ids, strict=True):
        assert (record.token, record.rank, len(record.top)) == (token, 1, 3)
        assert record.logprob == pytest.approx(10 - mass, abs=1e-5) == record.top[0][1]
        assert record.top[0][0] == token and record.top[1][0] == (token + 1) % VOCABULARY
    assert outputs[1].logprobs == () and [record.top for record in outputs[3].logprobs] == [()] * 4
    first = outputs[2].logprobs[0]  # what the model thought, not what the bias made of it
    assert first.token == 3 and first.rank > 1 and first.top[0][0] == null_next_token((5, 6), VOCABULARY)


def test_a_step_that_came_to_nothing_leaves_no_record() -> None:
    request, decoding = asked((1, 2), logprobs=0), OneToken()
    plan = Plan((Step(request, Row(0, (1, 2), 0)),))
    logits = np.eye(1, 9, 4, dtype=np.float32)
    for _ in range(2):
        assert decoding.accept(plan, logits) == [(4,)]
    assert [record.token for record in request.logprobs] == [4]


class Everything:
    """Runs requests as a scheduler will that asks them for their logits; keeps what was decided."""

    def __init__(self, session: PagedNullSession) -> None:
        self._session = session
        self._decoding = OneToken()

    def run(self, requests: list[Request], chunk: int) -> None:
        computed = dict.fromkeys(requests, 0)
        while left := [request for request in requests if not request.finished]:
            steps = [self._step(slot, request, computed[request], chunk) for slot, request in enumerate(left)]
            plan = Plan(tuple(steps))
            logits = self._session.run(Batch(tuple(step.row for step in steps)))
            accepted = self._decoding.accept(plan, logits)
            for request, tokens in zip(plan.sampled, accepted, strict=True):
                request.extend(tokens, 64)
            for step in steps:
                computed[step.request] += len(step.row.tokens)

    @staticmethod
    def _step(slot: int, request: Request, start: int, chunk: int) -> Step:
        tokens = request.tokens_from(start, chunk)
        block = (request.prompt[0],)
        return Step(request, Row(slot, tokens, start, request.logits_wanted(start, len(tokens)), block))


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_of_the_prompt(chunk: int) -> None:
    prompts = [(0, 5, 9, 9, 5, 2, 800, 3, 1, 2), (1, 7), (2,)]
    requests = [
        asked(prompts[0], prompt_logprobs=2),
        asked(prompts[1], logprobs=1),
        asked(prompts[2], prompt_logprobs=0),
    ]
    Everything(PagedNullSession(LIMITS, VOCABULARY)).run(requests, chunk)
    plain = [asked(prompt) for prompt in prompts]
    Everything(PagedNullSession(LIMITS, VOCABULARY)).run(plain, chunk)
    assert [request.generated for request in requests] == [request.generated for request in plain]

    first, second, third = map(output_of, requests)
    assert first.prompt_logprobs[0] is None and len(first.prompt_logprobs) == 10
    ramp = 10.0 - np.arange(VOCABULARY)
    for place, record in enumerate(first.prompt_logprobs[1:], 1):
        assert record is not None
        liked = null_next_token(prompts[0][:place], VOCABULARY)
        behind = (prompts[0][place] - liked) % VOCABULARY
        assert (record.token, record.rank, record.top[0][0], len(record.top)) == (
            prompts[0][place],
            behind + 1,
            liked,
            2,
        )
        assert record.logprob == pytest.approx(ramp[behind] - np.log(np.exp(ramp).sum()), abs=1e-3)
    assert first.logprobs == () and second.prompt_logprobs == () and len(second.logprobs) == 4
    assert third.prompt_logprobs == (None,)


def test_a_prompt_that_is_computed_again_is_recorded_once() -> None:
    request = asked((0, 5, 9, 9), prompt_logprobs=0, max_new_tokens=2)
    running = Everything(PagedNullSession(LIMITS, VOCABULARY))
    running.run([request], 3)
    recorded = list(request.prompt_logprobs)
    assert not request.wants_prompt_logits
    request.finish_reason, request.params = None, SamplingParams(max_new_tokens=4, prompt_logprobs=0)
    running.run([request], 3)  # from the first token, as after a place was lost
    assert request.prompt_logprobs == recorded and len(request.generated) == 4


def test_a_prompt_that_lost_its_place_is_recorded_on() -> None:
    decoding, session = OneToken(), PagedNullSession(LIMITS, VOCABULARY)
    prompt = (0, 5, 9, 9, 5, 2, 800)
    halved, whole = asked(prompt, prompt_logprobs=1), asked(prompt, prompt_logprobs=1)
    Everything(session).run([whole], 8)
    for start, count, wanted, given in ((0, 3, 3, 3), (0, 2, 0, 0), (2, 4, 3, 4), (6, 1, 1, 1)):
        assert halved.logits_wanted(start, count) == wanted
        step = Step(halved, Row(0, prompt[start : start + count], start, given, (0,)))
        decoding.accept(Plan((step,)), session.run(Batch((step.row,))))
    assert halved.prompt_logprobs == whole.prompt_logprobs


def test_sessions_that_cannot() -> None:
    once = Limits(2, 8, 64, 2, 1)
    with pytest.raises(OptionError, match="prompt_logprobs needs the logits of every token"):
        check_logprobs(asked((1, 2), prompt_logprobs=1), once)
    check_logprobs(asked((1, 2), logprobs=1), once)
    check_logprobs(asked((1, 2), prompt_logprobs=1), LIMITS)
    check_logprobs(asked((1, 2), prompt_logprobs=1), Limits(2, 1, 64, 2, 1))
