"""Grammars that say which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from QEfficient.devices.null import NullSession
from QEfficient.generation.adjustments import apply_masks
from QEfficient.generation.engine import Engine
from QEfficient.generation.masks import OneOf, packed, unpacked
from QEfficient.generation.request import Request
from QEfficient.specs import CompileSpec, SamplingParams

VOCABULARY = 1000


@pytest.mark.parametrize("tokens", [[], [0], [31], [32], [0, 5, 31, 32, 63, 64, 999]])
@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.uint8])
def test_bits(tokens: list[int], kind: Any) -> None:
    (allowed,) = unpacked([packed(tokens).view(kind)], VOCABULARY)
    assert np.flatnonzero(allowed).tolist() == tokens


def test_words_beyond_the_vocabulary() -> None:
    assert unpacked([np.full(9, -1, np.int32), np.full(1, -1, np.int32)], 40).sum(-1).tolist() == [40, 32]


def test_masks_touch_their_rows_only() -> None:
    scores = np.zeros((3, 70), np.float32)
    asked = [Request((1,), mask=OneOf([[token]])) for token in (3, 69)]
    apply_masks(scores, [0, 2], asked)
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in scores] == [[3], list(range(70)), [69]]


def engine() -> Engine:
    return Engine(NullSession(CompileSpec(full_batch_size=3, prefill_seq_len=8, ctx_len=32), VOCABULARY))


CHOICES = [(5, 6, 7), (5, 9), (800,)]


@pytest.mark.parametrize("temperature", [0.0, 50.0])
def test_one_of_some_answers(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3)
    asked = [Request((n, n), params, (999,), mask=OneOf(CHOICES, [999])) for n in range(20)]
    outputs = engine().generate([*asked, Request((1, 2), SamplingParams(max_new_tokens=3))])
    said = {output.generated_ids for output in outputs[:-1]}
    assert said <= {(*choice, 999) for choice in CHOICES} and (len(said) > 1 or not temperature)
    assert {output.finish_reason for output in outputs[:-1]} == {"stop"}
    assert len(outputs[-1].generated_ids) == 3


def test_nothing_left_to_say() -> None:
    working = engine()
    (output,) = working.generate([Request((1, 2), mask=OneOf([(5, 6)]), params=SamplingParams(logprobs=0))])
    assert (output.generated_ids, output.finish_reason) == ((5, 6), "exhausted")
    assert len(output.logprobs) == 2 and working.idle
    (output,) = working.generate([Request((1, 2), mask=OneOf([]))])
    assert (output.generated_ids, output.finish_reason) == ((), "exhausted")


class Grammar:
    """As an adapter of xgrammar or llguidance: accepts what is new, then fills its bits."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self._bits = np.zeros(-(-VOCABULARY // 32), np.int32)

    def mask(self, generated: Sequence[int]) -> np.ndarray:
        self.accepted += generated[len(self.accepted) :]
        self._bits[:] = 0
        allowed = packed([10 + len(self.accepted)])
        self._bits[: allowed.size] = allowed.view(np.int32)
        return self._bits


def test_a_grammar_with_state() -> None:
    grammars = [Grammar(), Grammar()]
    asked = [Request((1, n), SamplingParams(max_new_tokens=4), mask=each) for n, each in enumerate(grammars)]
    outputs = engine().generate(asked)
    assert [output.generated_ids for output in outputs] == [(10, 11, 12, 13)] * 2
    assert grammars[0].accepted == [10, 11, 12]
