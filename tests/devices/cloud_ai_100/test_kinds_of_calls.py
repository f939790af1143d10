"""Programs with more kinds of calls than prefill and decoding of one token: tokens tried ahead, contexts read in part,
one phase only. On the reference device and on the simulated card they all give the tokens of the plain program."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.devices import Batch, Row, get_device
from QEfficient.errors import OptionError
from QEfficient.generation.decoding.draft_model import DraftModel
from QEfficient.generation.decoding.speculation import Drafts, Offer, Speculation
from QEfficient.generation.request import Request
from QEfficient.program import load_compiled
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import prompts, tiny_model

CONTEXT = {"ctx_len": 64, "prefill_seq_len": 8}
SLOTS, ROWS = {"full_batch_size": 2}, {"batch_size": 3}
DEVICES = ("reference", "cloud_ai_100")
NEW = 12
TARGET = {"speculative_model_type": "target"}
LENGTHS = {"comp_ctx_lengths_prefill": [16, 32], "comp_ctx_lengths_decode": [24, 40, 64]}


@cache
def world(model_type: str) -> tuple[Any, list[list[int]], list[list[int]]]:
    """A model, prompts for it, and what it says to them."""
    model = tiny_model(model_type)
    asked = prompts(model)
    return model, asked, [list(expect(model, prompt, NEW).tokens) for prompt in asked]


def answers(wrapped: QEFFAutoModelForCausalLM, asked: Sequence[Sequence[int]], **options: Any) -> Any:
    options = {"input_ids": [list(prompt) for prompt in asked], "max_new_tokens": NEW, "ignore_eos": True, **options}
    return wrapped.generate(temperature=0, **options)


def ids(info: Any) -> list[list[int]]:
    return [list(found) for found in info.generated_ids]


class Known(Speculation):
    """Drafts that are right, but for every fifth token."""

    def __init__(self, lookahead: int, said: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(lookahead, adaptive=False)
        self._said = said

    def _offers(self, steps: Sequence[Any]) -> Sequence[Offer]:
        return [Offer(step.request, step.room) for step in steps]

    def _draft(self, wanted: Any) -> Drafts:
        return {request: self._next(request, length) for request, length in wanted.items()}

    def _next(self, request: Request, length: int) -> list[int]:
        done = len(request.generated)
        right = self._said[request.prompt][done : done + length]
        return [token if (done + place) % 5 else 1 for place, token in enumerate(right)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", [SLOTS, ROWS], ids=["slots", "rows"])
def test_tokens_tried_ahead(new_sdk: str, device: str, geometry: dict[str, int]) -> None:
    model, asked, said = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, "full_batch_size" in geometry, TARGET)
    wrapped.compile(device=device, num_speculative_tokens=[1, 3, 7], **CONTEXT, **geometry)
    known = dict(zip(map(tuple, asked), said, strict=True))
    for lookahead in (1, 3, 7):
        info = answers(wrapped, asked, decoding=Known(lookahead, known))
        assert ids(info) == said
        assert 0 < info.accepted < info.drafted
    assert ids(answers(wrapped, asked)) == said


def test_no_token_ahead_is_a_number_too(new_sdk: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(world("qwen3")[0], True, TARGET)
    wrapped.compile(device="reference", num_speculative_tokens=0, **CONTEXT, **SLOTS)
    assert wrapped.compiled is not None and wrapped.compiled.spec.num_speculative_tokens == (0,)


def test_no_token_ahead_of_a_program_that_chooses(new_sdk: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(world("qwen3")[0], True, {"include_sampler": True})
    wrapped.compile(device="reference", num_speculative_tokens=0, **CONTEXT, **SLOTS)
    assert wrapped.compiled is not None and wrapped.compiled.spec.num_speculative_tokens == ()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_one_number_of_tokens_ahead(new_sdk: str, device: str, ahead: int) -> None:
    model, asked, said = world("qwen3")
    wrapped = QEFFAutoModelForCausalLM(model, True, TARGET)
    wrapped.compile(device=device, num_speculative_tokens=ahead, **CONTEXT, **SLOTS)
    known = dict(zip(map(tuple, asked), said, strict=True))
    assert ids(answers(wrapped, asked, decoding=Known(ahead, known))) == said
    info = answers(wrapped, asked[:1], prompt_logprobs=0)  # of several tokens in one run
    assert len(info.outputs[0][0].prompt_logprobs) == len(asked[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [SLOTS, ROWS], ids=["slots", "rows"])
def test_a_draft_model(new_sdk: str, device: str, shape: dict[str, int]) -> None:
    """On the card too: it goes back in its own slots. Here it is the model itself, so that it is right."""
    model, asked, said = world("qwen3")
    own: dict[str, Any] = {"device": device, "num_cores": 8, **CONTEXT, **shape}
    wrapped, draft = (QEFFAutoModelForCausalLM(model, shape is SLOTS, config) for config in (TARGET, None))
    wrapped.compile(num_speculative_tokens=3, **own)
    draft.compile(**own)
    assert draft.compiled is not None
    with get_device(device).load(draft.compiled) as session:
        for _ in range(2):  # again, from what its slots have kept
            info = answers(wrapped, asked, decoding=DraftModel(session, 3, adaptive=False))
            assert ids(info) == said
            assert 0.9 * info.drafted < info.accepted and info.accepted > NEW


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mpt"])
def test_contexts_that_are_read_in_part(new_sdk: str, device: str, model_type: str) -> None:
    model, asked, said = world(model_type)
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    wrapped.compile(device=device, **LENGTHS, **CONTEXT, **SLOTS)
    assert ids(answers(wrapped, asked)) == said


def test_each_run_reads_no_more_than_it_needs(new_sdk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And prefill that would have to read further than its shapes do goes token by token."""
    model, _, _ = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    compiled = load_compiled(Path(wrapped.compile(device="cloud_ai_100", **LENGTHS, **CONTEXT, **SLOTS)))
    tokens = list(range(2, 62))
    calls = []
    with get_device("cloud_ai_100").load(compiled) as session, get_device("reference").load(compiled) as judge:
        execute = session._execute
        monkeypatch.setattr(
            session,
            "_execute",
            lambda feeds: calls.append((feeds["input_ids"].shape[1], len(feeds["comp_ctx_lengths"]))) or execute(feeds),
        )
        for start in range(0, 56, 8):
            row = Batch((Row(0, tokens[start : start + 8], start),))
            found, wanted = session.run(row), judge.run(row)
        last = Batch((Row(0, tokens[56:57], 56),))
        found, wanted = session.run(last), judge.run(last)
    assert np.abs(found - wanted).max() < 0.02 * np.ptp(wanted)
    assert calls[:4] == [(8, 16), (8, 16), (8, 32), (8, 32)]
    assert calls[4:] == [(1, 40)] * 8 + [(1, 64)] * 17


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", [SLOTS, ROWS], ids=["slots", "rows"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3_next"])
def test_prefill_hands_over_to_decoding(new_sdk: str, device: str, geometry: dict[str, int], model_type: str) -> None:
    model, asked, said = world(model_type)
    prefill, decode = (QEFFAutoModelForCausalLM(model, "full_batch_size" in geometry) for _ in range(2))
    half = {"num_cores": 8, "device": device, **geometry}  # both are on one device
    prefill.compile(prefill_only=True, **CONTEXT, **half)
    decode.compile(prefill_only=False, **{**CONTEXT, "prefill_seq_len": 1}, **half)
    assert ids(answers(decode, asked, prefill_model=prefill)) == said
    assert ids(answers(decode, asked)) == said, "the program for decoding alone, which takes prompts token by token"
    assert ids(answers(prefill, asked)) == said, "the program for prefill alone"


def test_prompts_come_in_the_chunks_of_the_program_that_takes_them(new_sdk: str) -> None:
    """However long those of the one that decodes are, or short: a decoding program takes prompts token by token."""
    model, asked, said = world("llama")
    programs = {}
    for name, phase, chunk in (("small", True, 4), ("whole", None, 16), ("steps", False, 1)):
        programs[name] = QEFFAutoModelForCausalLM(model, continuous_batching=True)
        programs[name].compile(device="reference", prefill_only=phase, **{**CONTEXT, "prefill_seq_len": chunk}, **SLOTS)
    for decode, prefill in (("whole", "small"), ("small", "whole"), ("whole", "steps"), ("small", "steps")):
        assert ids(answers(programs[decode], asked, prefill_model=programs[prefill])) == said, (decode, prefill)


@pytest.mark.parametrize("device", DEVICES)
def test_phases_that_read_in_part_hand_over(new_sdk: str, device: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each with a list to its context's end, which prefill beside decoding could not have."""
    model, asked, said = world("llama")
    prefill, decode, both = (QEFFAutoModelForCausalLM(model, continuous_batching=True) for _ in range(3))
    half = {"num_cores": 8, "device": device, **SLOTS}
    prefill.compile(prefill_only=True, comp_ctx_lengths_prefill=[24, 64], **CONTEXT, **half)
    lengths = {"comp_ctx_lengths_decode": [24, 64]}
    decode.compile(prefill_only=False, **lengths, **{**CONTEXT, "prefill_seq_len": 1}, **half)
    assert ids(answers(decode, asked, prefill_model=prefill)) == said
    assert ids(answers(decode, asked)) == said
    assert ids(answers(prefill, [range(2, 62)], max_new_tokens=4)) == ids(
        answers(decode, [range(2, 62)], max_new_tokens=4)
    )
    assert "token by token" not in caplog.text
    both.compile(comp_ctx_lengths_prefill=[16], **lengths, **CONTEXT, **half)
    assert caplog.text.count("comp_ctx_lengths_prefill [16] ends at 16") == 1


def test_programs_of_other_geometry_hand_nothing_over(new_sdk: str) -> None:
    model, asked, _ = world("llama")
    prefill, decode = (QEFFAutoModelForCausalLM(model, continuous_batching=True) for _ in range(2))
    prefill.compile(device="cloud_ai_100", num_cores=8, prefill_only=True, full_batch_size=4, **CONTEXT)
    decode.compile(device="cloud_ai_100", num_cores=8, prefill_only=False, **CONTEXT, **SLOTS)
    with pytest.raises(OptionError, match="compiled for slots 4, that for decoding for 2"):
        answers(decode, asked, prefill_model=prefill)


def test_more_slots_than_rows_keep_what_may_come_back(new_sdk: str) -> None:
    model, _, _ = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    wrapped.compile(device="cloud_ai_100", num_cores=8, full_batch_size=2, kv_cache_batch_size=4, **CONTEXT)
    shared = [[7 + number, *range(3, 33)] for number in range(4)]
    first = ids(answers(wrapped, [[*prompt, 40] for prompt in shared]))
    again = answers(wrapped, [[*prompt, 40] for prompt in shared])
    assert ids(again) == first
    assert [answer.cached_tokens for (answer,) in again.outputs] == [31] * 4
    other = answers(wrapped, [[*prompt, 50, 60] for prompt in shared])
    assert [answer.cached_tokens for (answer,) in other.outputs] == [31] * 4
    fresh = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    fresh.compile(device="cloud_ai_100", num_cores=8, full_batch_size=2, **CONTEXT)
    assert ids(other) == [ids(answers(fresh, [[*prompt, 50, 60]]))[0] for prompt in shared]


def test_windows_that_roll_are_no_targets(new_sdk: str) -> None:
    for model_type, word in (("gemma2", "retain_full_kv=True"), ("qwen3_next", "recurrent")):
        wrapped = QEFFAutoModelForCausalLM(tiny_model(model_type), True, TARGET)
        with pytest.raises(NotImplementedError, match=word):
            wrapped.compile(device="cloud_ai_100", num_speculative_tokens=3, **CONTEXT, **SLOTS)


@pytest.mark.parametrize(
    ("config", "options", "error", "words"),
    [
        (TARGET, {}, TypeError, "num_speculative_tokens is needed"),
        (TARGET, {"num_speculative_tokens": 8}, OptionError, "must be at least 9"),
        (TARGET, {"num_speculative_tokens": [1, -1]}, OptionError, "from 0 on"),
        (None, {"num_speculative_tokens": 3}, OptionError, "speculative_model_type"),
        (None, {"prefill_only": 1}, TypeError, "prefill_only"),
        (None, {"comp_ctx_lengths_decode": [128]}, OptionError, "more than ctx_len 64"),
        (None, {"comp_ctx_lengths_decode": [24, 48]}, OptionError, r"\[24, 48\] end at 48, .* Add 64"),
        (None, {"comp_ctx_lengths_decode": "[24, x]"}, OptionError, "list of whole numbers"),
        ({"speculative_model_type": "tarjet"}, {}, ValueError, "target or turbo"),
        ({"ccl_enable": True}, {}, OptionError, "Did you mean 'ccl_enabled'"),
        ({"include_sampler": True}, {"num_speculative_tokens": 3}, OptionError, "speculative_model_type"),
        (None, {"fullbatch_sizes": 3}, OptionError, "Did you mean 'full_batch_size'"),
        (None, {"mxfp6": True}, OptionError, "compile has no 'mxfp6', but mxfp6_matmul="),
        (TARGET, {"num_speculative_tokens": [1, 3], **LENGTHS}, NotImplementedError, "one number"),
    ],
)
def test_what_does_not_go_together(
    new_sdk: str, config: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    def compile_it() -> None:
        wrapped = QEFFAutoModelForCausalLM(world("llama")[0], True, config)
        wrapped.compile(device="cloud_ai_100", **CONTEXT, **SLOTS, **options)

    with pytest.raises(error, match=words):
        compile_it()
