"""Variants of a type that its default config does not show."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from small_models import drawn

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import prompts, tiny_config, tiny_model

COUNT = 6


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(COUNT):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_alibi_in_falcon(caplog: pytest.LogCaptureFixture) -> None:
    """It counts the context by a padding mask, and computes its slopes in bfloat16, which plain runtimes lack."""
    config = tiny_config("falcon")
    config.alibi, config.new_decoder_architecture = True, False
    model = drawn(transformers.FalconForCausalLM._from_config(config, attn_implementation="eager"))
    asked = [[17, 60, 22, 81, 35], [7, 44, 92]]
    served = QEFFAutoModelForCausalLM(model)
    with caplog.at_level(logging.WARNING):
        served.compile(prefill_seq_len=4, ctx_len=24, device="reference")
    assert "computes its whole context again" not in caplog.text
    found = served.generate(input_ids=asked, generation_len=COUNT, ignore_eos=True).generated_ids
    assert found == [greedy(model, prompt) for prompt in asked]


def test_logits_that_the_model_widens_are_of_the_programs_dtype(tmp_path: Path) -> None:
    model = tiny_model("mamba2", dtype=torch.float16)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5]])).logits.dtype == torch.float32
    path = QEFFAutoModelForCausalLM(model, dtype="float16").export(tmp_path / "half")
    (logits,) = [output for output in onnx.load(path, load_external_data=False).graph.output if output.name == "logits"]
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_the_text_part_of_a_composite_model_saved_alone(tmp_path: Path) -> None:
    """AutoModelForCausalLM does not know its config; the checkpoint names the class."""
    made = tiny_model("emu3")
    made.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    asked = prompts(made)[:1]
    served = QEFFAutoModelForCausalLM.from_pretrained(str(tmp_path))
    served.compile(prefill_seq_len=8, ctx_len=32, device="reference")
    found = served.generate(input_ids=asked, generation_len=COUNT, ignore_eos=True).generated_ids
    assert found == [greedy(made, asked[0])]
