"""The reference device in the precision of a device that does not compute in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from QEfficient.devices import Accuracy
from QEfficient.devices.null import NullDevice
from QEfficient.specs import CompileSpec
from QEfficient.transformers.loading import open_source
from QEfficient.verification.comparison import agreement, compare
from QEfficient.verification.eager import Expected, expect
from QEfficient.verification.narrow_reference import Original, narrow_reference, reference_in
from QEfficient.verification.tiny_models import prompts, tiny_model
from QEfficient.verification.truth import Truth

SPEC = CompileSpec(batch_size=3, prefill_seq_len=6, ctx_len=40)


class HalfDevice(NullDevice):
    """Whatever it computes, it does so in float16."""

    computes_in = "float16"


def narrowly(device: NullDevice, model: Any) -> tuple[Truth | str | None, Sequence[Expected]]:
    original = Original(open_source(model, AutoModelForCausalLM, {}), model)
    expected = [expect(model, prompt, 4) for prompt in prompts(model)]
    with narrow_reference(device, SPEC, original, expected, threads=1) as found:
        return found, expected


def beyond_half() -> Any:
    """A model with weights that float16 does not hold."""
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e7)
    return model


def test_it_is_near_to_float32_and_not_the_same() -> None:
    truth, expected = narrowly(HalfDevice(), tiny_model("llama"))
    assert isinstance(truth, Truth) and truth.name == "program on reference in float16"
    judged = truth.allowing(Accuracy(0.02, 0.01))
    compared = [judged.compare(e.logits, own.logits) for e, own in zip(truth.expected, expected, strict=True)]
    assert all(c.passed for c in compared)
    assert max(c.relative_error for c in compared) > 1e-4, "float16 rounds"
    assert agreement(truth.name, compared).same == 3


def test_there_is_none_for_a_device_in_float32() -> None:
    assert narrowly(NullDevice(), tiny_model("llama"))[0] is None


def test_it_says_that_float16_does_not_hold_the_model() -> None:
    reason, _ = narrowly(HalfDevice(), beyond_half())
    assert reason == "its logits are no numbers in float16, as in transformers itself"


def test_it_says_that_it_cannot_be_run() -> None:
    """ONNX Runtime adds to scattered values in float32 only."""
    reason, _ = narrowly(HalfDevice(), tiny_model("jetmoe"))
    assert isinstance(reason, str) and reason.startswith("DeviceError: ONNX Runtime could not run the program: ")


@pytest.mark.parametrize(("gap", "same", "ties", "passed"), [(0.0, 2, 0, True), (0.01, 1, 1, True), (0.5, 1, 0, False)])
def test_other_tokens_are_counted_and_tolerated_only_when_as_good(
    gap: float, same: int, ties: int, passed: bool
) -> None:
    """The second prompt of two turns to a token that was behind by so much."""
    expected = np.array([[1.0, 1.0 - gap, 0.0]])
    found = expected[:, [1, 0, 2]] if gap else expected
    comparisons = [compare(expected, one, tolerance=0.02, near_tie=0.02) for one in (expected, found)]
    summed = agreement(reference_in("float16"), comparisons)
    assert (summed.same, summed.ties) == (same, ties)
    assert all(c.passed for c in comparisons) is passed
