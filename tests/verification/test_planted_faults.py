"""Faults that are planted on purpose are caught, and located in the stage and the layer where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from QEfficient.errors import VerificationError
from QEfficient.graph import passes
from QEfficient.operators import attention_bodies, functions
from QEfficient.operators.functions import CLOUD_DOMAIN
from QEfficient.transformers import retained_state
from QEfficient.transformers.models import causal_lm
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.transform import retain
from QEfficient.verification import ladder
from QEfficient.verification.report import Report
from QEfficient.verification.tiny_models import tiny_model

MODULE, PROGRAM = "the transformed module", "program on reference"


def verified(model_type: str, **options: Any) -> Report:
    report = ladder.verify(tiny_model(model_type), device="reference", new_tokens=8, **options)
    with pytest.raises(VerificationError) as failure:
        report.raise_if_failed()
    assert report.parting in str(failure.value)
    return report


def failed_stages(report: Report) -> set[str]:
    return {failure.stage for failure in report.failures}


def with_wrong_rope(model: Any, rolling: bool = True) -> RetainedModule:
    retained = retain(model, rolling)
    for name, buffer in retained.named_buffers():
        if name.endswith("inv_freq"):
            buffer.mul_(1.05)
    return retained


def test_a_wrong_rope_factor_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "retain", with_wrong_rope)
    report = verified("llama")
    assert failed_stages(report) == {MODULE}
    assert report.parting == f"{MODULE} parts from Hugging Face at layer 0 (model.rotary_emb), from position 1 on"


def test_a_wrong_rope_factor_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "retain", with_wrong_rope)
    report = verified("llama", continuous_batching=True)
    assert failed_stages(report) == {PROGRAM}
    assert report.parting.startswith(f"{PROGRAM} parts from {MODULE} at layer 0 (past_key.0)")


def test_keys_and_values_swapped_by_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    right = retained_state.cached_attention

    def swapped(query: Any, key: Any, value: Any, *rest: Any) -> Any:
        return right(query, value, key, *rest)

    monkeypatch.setattr(retained_state, "cached_attention", swapped)
    report = verified("llama")
    assert failed_stages(report) == {MODULE, PROGRAM}
    assert report.parting.startswith(f"{MODULE} parts from Hugging Face at layer 0 (model.layers.0.self_attn")


def test_keys_and_values_swapped_in_the_second_layer_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    right = passes.passes_for

    def swap(model: Any) -> None:
        node = [n for n in model.graph if n.op_type.startswith("CachedAttention")][1]
        key, value = node.inputs[1], node.inputs[2]
        node.replace_input_with(1, value)
        node.replace_input_with(2, key)

    monkeypatch.setattr(passes, "passes_for", lambda spec: [*right(spec), swap])
    report = verified("llama")
    assert failed_stages(report) == {PROGRAM}
    assert report.parting.startswith(f"{PROGRAM} parts from {MODULE} at layer 1 (past_key.1)")


def test_a_decoded_token_that_stands_one_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RetainedModule.forward

    def shifted(
        self: Any, input_ids: Any, position_ids: torch.Tensor, batch_index: Any, controls: Any, states: Any
    ) -> Any:
        late = position_ids.shape[1] == 1 and not torch.compiler.is_exporting()
        late_positions = torch.where(position_ids >= 0, position_ids + late, -1)
        return right(self, input_ids, late_positions, batch_index, controls, states)

    monkeypatch.setattr(RetainedModule, "forward", shifted)
    report = verified("llama")
    assert failed_stages(report) == {MODULE}
    assert report.parting == f"{MODULE} parts from Hugging Face at layer 0 (model.rotary_emb), from position 5 on"


def replaced(right: str, wrong: str, text: str) -> str:
    assert right in text, "the operator's body has changed: plant the fault anew"
    return text.replace(right, wrong)


def test_a_write_that_is_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    body = functions._BUILDERS[CLOUD_DOMAIN, "CtxScatter"]()
    wrong = replaced(
        "target = Where(dropped, slots, position_ids)",
        "later = Add(position_ids, one)\n    target = Where(dropped, slots, later)",
        body,
    )
    monkeypatch.setitem(functions._BUILDERS, (CLOUD_DOMAIN, "CtxScatter"), lambda: wrong)
    report = verified("llama")
    assert failed_stages(report) == {PROGRAM}
    assert report.parting.startswith(f"{PROGRAM} parts from {MODULE} at layer 0 (past_key.0)")


def test_a_window_that_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replaced(
        "slot_of = Mod(position_ids, slot_count)",
        "last_slot = Sub(slot_count, step)\n    slot_of = Min(position_ids, last_slot)",
        attention_bodies._ROLL,
    )
    monkeypatch.setattr(attention_bodies, "_ROLL", wrong)
    report = verified("gemma3_text")
    assert failed_stages(report) == {PROGRAM}
    assert "window wrap" in [getattr(failure, "name", "") for failure in report.failures]
    rolling = "past_key.0" if "past_key.0" in report.parting else "past_key.1"
    assert f"({rolling}), in the run of positions 8 to " in report.parting
