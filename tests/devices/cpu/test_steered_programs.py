"""Programs with inputs that steer padded calls, on a device that packs tokens: it needs none of them, and gives the
tokens of Hugging Face. What chooses tokens itself is refused before anything is made."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.artifacts import ArtifactStore
from QEfficient.devices import Batch, Row, get_device
from QEfficient.devices.cpu.opening import MODEL_FILE
from QEfficient.errors import OptionError
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, load_compiled
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.stages import compile_program
from QEfficient.verification.eager import all_logits, expect
from QEfficient.verification.ladder import verify
from QEfficient.verification.tiny_models import prompts, tiny_model

CONTEXT = {"ctx_len": 64, "prefill_seq_len": 8, "device": "cpu", "num_threads": 1}
TARGET = {"speculative_model_type": "target"}
LENGTHS = {"comp_ctx_lengths_prefill": [16, 32], "comp_ctx_lengths_decode": [24, 64]}
NEW = 10
pytestmark = pytest.mark.usefixtures("exports_are_shared")


@cache
def world(model_type: str) -> tuple[Any, list[list[int]], list[list[int]]]:
    """A model, prompts for it, and what Hugging Face says to them."""
    model = tiny_model(model_type)
    asked = prompts(model)
    return model, asked, [list(expect(model, prompt, NEW).tokens) for prompt in asked]


def ids(wrapped: QEFFAutoModelForCausalLM, asked: list[list[int]], **options: Any) -> list[list[int]]:
    options = {"input_ids": asked, "max_new_tokens": NEW, "ignore_eos": True, "temperature": 0, **options}
    return [list(found) for found in wrapped.generate(**options).generated_ids]


def inputs(compiled_folder: Path) -> set[str]:
    return {str(value.name) for value in ir.load(compiled_folder / MODEL_FILE).graph.inputs}


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "rows"])
def test_a_speculative_target(slots: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, asked, said = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, slots, TARGET)
    geometry = {"full_batch_size": 2} if slots else {"batch_size": 2}
    with caplog.at_level(logging.INFO, "QEfficient"):
        folder = wrapped.compile(num_speculative_tokens=[1, 3], prefill_only=True, **CONTEXT, **geometry)
    (line,) = [record.getMessage() for record in caplog.records if "has no use for" in record.getMessage()]
    assert "num_speculative_tokens, prefill_only" in line
    assert KEPT_LOGITS not in inputs(folder)
    assert ids(wrapped, asked) == ids(wrapped, asked, decoding="prompt_lookup") == said


# Of each kind: all in blocks, sinks, a window, a cap in a portable body, masks of the model's own, recurrent, buffers.
KINDS = ("llama", "gpt_oss", "gemma3_text", "gemma2", "mpt", "qwen3_next", "deepseek_v3")


@pytest.mark.parametrize("model_type", KINDS)
def test_contexts_that_are_read_in_part(model_type: str) -> None:
    model, asked, said = world(model_type)
    wrapped = QEFFAutoModelForCausalLM(model, continuous_batching=True)
    folder = wrapped.compile(full_batch_size=2, **LENGTHS, **CONTEXT)
    packed = load_compiled(folder).report["states"] is not None
    assert (COMPUTE_CONTEXT in inputs(folder)) != packed
    assert ids(wrapped, asked) == said


@pytest.mark.parametrize("weight_format", ["f32", "int8"])
def test_the_logits_of_every_token(weight_format: str) -> None:
    model, asked, _ = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, True, {**TARGET, "ccl_enabled": True})
    compiled = load_compiled(
        wrapped.compile(
            full_batch_size=2, num_speculative_tokens=3, weight_format=weight_format, **CONTEXT | {"ctx_len": 1024}
        )
    )
    tokens = asked[-1]
    with get_device("cpu").load(compiled) as session:
        found = session.run(Batch((Row(0, tokens, 0, len(tokens), range(4)),)))
    wanted = all_logits(model, tokens)
    assert np.abs(found - wanted).max() < (1e-4 if weight_format == "f32" else 0.1) * np.ptp(wanted)


@pytest.mark.parametrize("options", [{}, {"num_speculative_tokens": (3,), "comp_ctx_lengths_decode": (32, 64)}])
def test_programs_without_their_options_and_options_without_their_program(options: dict[str, Any]) -> None:
    """A program that is compiled from its file: whether it has the inputs or the options are given is all the same."""
    model, _, _ = world("llama")
    config = None if options else {**TARGET, "ccl_enabled": True}
    exporter = QEFFAutoModelForCausalLM(model, False, config)
    exporter.export()
    assert exporter._program is not None
    spec = CompileSpec(2, 8, 64, device_options={"num_threads": 1}, **options)
    compiled = compile_program(exporter._program, spec, get_device("cpu"), ArtifactStore())
    assert not inputs(compiled.folder) & {KEPT_LOGITS, COMPUTE_CONTEXT}


@pytest.mark.parametrize("weight_format", ["f32", "int8"])
def test_they_can_be_verified(weight_format: str, tmp_path: Path) -> None:
    """Against the reference device with the same weights too, which does need the inputs."""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    exporter = QEFFAutoModelForCausalLM(str(folder), True, {**TARGET, "ccl_enabled": True})
    exporter.export()
    assert exporter._program is not None
    own = {"num_threads": 1, "weight_format": weight_format, "max_tokens": 8}
    spec = CompileSpec(1, 8, 64, 2, device_options=own)
    compiled = compile_program(exporter._program, spec, get_device("cpu"), ArtifactStore())
    report = verify(compiled.folder, prompts=world("llama")[1], new_tokens=4)
    report.raise_if_failed()
    assert {check.name: check.passed for check in report.checks}["tokens tried ahead"]


def test_a_sampler_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = world("llama")
    wrapped = QEFFAutoModelForCausalLM(model, False, {"include_sampler": True})
    monkeypatch.setattr(wrapped, "export", lambda **options: pytest.fail("it was exported"))
    with pytest.raises(OptionError, match="chosen on the host.*Leave include_sampler out"):
        wrapped.compile(**CONTEXT)
    monkeypatch.undo()
    wrapped.export()
    assert wrapped._program is not None
    with pytest.raises(OptionError, match="Export it without include_sampler"):
        compile_program(wrapped._program, CompileSpec(1, 8, 64), get_device("cpu"), ArtifactStore())
