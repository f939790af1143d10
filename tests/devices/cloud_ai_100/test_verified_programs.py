"""`verify` of programs with other kinds of calls, on the simulated card: logits and caches of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError
from QEfficient.verification.ladder import verify
from QEfficient.verification.report import Report
from QEfficient.verification.tiny_models import prompts, tiny_model

AHEAD = "tokens tried ahead"
TARGET = {"speculative_model_type": "target"}
IN_PART = {"comp_ctx_lengths_prefill": [16, 40], "comp_ctx_lengths_decode": [24, 64]}
COPIED = {"qaic_config": {"replicate_kv_heads": True}, "num_devices": 4}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "both": (True, {"qaic_config": TARGET, "num_speculative_tokens": 3, **IN_PART}),
    "prompts only, copied heads": (True, {"prefill_only": True, **COPIED}),
    "ahead, rows": (False, {"qaic_config": TARGET, "num_speculative_tokens": [1, 3]}),
    "new tokens only, rows": (False, {"prefill_only": False}),
}
"""Whether with continuous batching, and what is asked for."""


def passed(report: Report) -> dict[str, set[bool | None]]:
    """What became of each check in the stages."""
    report.raise_if_failed()
    found: dict[str, set[bool | None]] = {}
    for check in report.checks:
        found.setdefault(check.name, set()).add(check.passed)
    return found


def narrow_heads() -> transformers.LlamaForCausalLM:
    """Two heads of keys for eight of queries."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_calls(new_sdk: str, kind: str) -> None:
    slots, options = KINDS[kind]
    report = verify(
        narrow_heads(),
        device="cloud_ai_100",
        prompts=[list(range(3, 14))],
        new_tokens=4,
        continuous_batching=slots,
        options=options,
    )
    found = passed(report)
    assert found[AHEAD] == ({True} if "qaic_config" in options and "num_speculative_tokens" in options else {None})
    assert found["idle rows"] == found["slot reuse"] == found["chunk boundaries"] == {True}


def test_a_model_that_builds_its_own_masks(new_sdk: str) -> None:
    report = verify(tiny_model("mpt"), device="cloud_ai_100", new_tokens=4, options=IN_PART)
    assert passed(report)["last position"] == {True}


def test_artifacts(new_sdk: str, tmp_path: Path) -> None:
    """Exported: with some of the calls that they are for. Compiled: with those that they were compiled for."""
    folder = tmp_path / "model"
    model = tiny_model("llama")
    model.save_pretrained(folder)
    asked: dict[str, Any] = {"prompts": prompts(model)[:2], "new_tokens": 3, "device": "cloud_ai_100"}
    wrapped = QEFFAutoModelForCausalLM(str(folder), True, {**TARGET, "ccl_enabled": True})
    exported = Path(wrapped.export()).parent
    report = verify(exported, **asked)
    assert passed(report)[AHEAD] == {True}
    assert report.geometry["num_speculative_tokens"] == (3,)
    assert report.geometry["comp_ctx_lengths_decode"] == (32, 64)
    spec = {"ctx_len": 64, "prefill_seq_len": 8, "full_batch_size": 2, "num_speculative_tokens": [2]}
    compiled = wrapped.compile(device="cloud_ai_100", **spec, **IN_PART)
    again = verify(compiled, options={"num_speculative_tokens": 2, "qaic_config": TARGET}, **asked)
    assert passed(again)[AHEAD] == {True}
    with pytest.raises(OptionError, match=r"num_speculative_tokens=\(3,\) was asked for.*=\(2,\)"):
        verify(compiled, options={"num_speculative_tokens": 3}, **asked)
    with pytest.raises(OptionError, match="exported already"):
        verify(compiled, options={"qaic_config": {"replicate_kv_heads": True}}, **asked)


def test_what_chooses_tokens_gives_nothing_to_compare(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    config = {"include_sampler": True}
    with pytest.raises(OptionError, match="no logits.*Verify the same model without include_sampler"):
        verify(str(folder), device="reference", options={"qaic_config": config})
    exported = Path(QEFFAutoModelForCausalLM(str(folder), True, config).export()).parent
    with pytest.raises(OptionError, match="no logits.*Verify the same model without include_sampler"):
        verify(exported, device="reference")
