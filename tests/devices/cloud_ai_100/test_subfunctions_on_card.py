"""Layers as functions, and attention in blocks, on the simulated card: the same tokens as without."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest

from qaic_simulator.graph.functions import check_functions
from qaic_simulator.profiles import profile_of
from qaic_simulator.rules import Refusal
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.program import load_compiled
from QEfficient.verification.eager import expect
from QEfficient.verification.tiny_models import prompts, tiny_model

CONTEXT = {"ctx_len": 64, "prefill_seq_len": 8}
SLOTS, ROWS = {"full_batch_size": 2}, {"batch_size": 3}
NEW = 8
FLAG = "-sub-functions"


@cache
def world(model_type: str) -> tuple[Any, list[list[int]]]:
    model = tiny_model(model_type)
    return model, prompts(model)


def answers(model_type: str, geometry: dict[str, int], config: Any = None, **options: Any) -> tuple[Any, list[Any]]:
    """The compiled program, and what it says."""
    model, asked = world(model_type)
    wrapped = QEFFAutoModelForCausalLM(model, "full_batch_size" in geometry, config)
    compiled = load_compiled(Path(wrapped.compile(device="cloud_ai_100", **CONTEXT, **geometry, **options)))
    info = wrapped.generate(input_ids=asked, max_new_tokens=NEW, ignore_eos=True, temperature=0)
    return compiled, [list(found) for found in info.generated_ids]


def graph_of(compiled: Any) -> onnx.ModelProto:
    return onnx.load(compiled.program.onnx_path(), load_external_data=False)


def check_same(model_type: str, geometry: dict[str, int]) -> None:
    plain, said = answers(model_type, geometry)
    functions, said_by_functions = answers(model_type, geometry, use_onnx_subfunctions=True)
    assert said_by_functions == said
    assert FLAG in functions.report["command"] and FLAG not in plain.report["command"]
    with_functions, without = graph_of(functions), graph_of(plain)
    for ends in ("input", "output"):
        assert [v.name for v in getattr(with_functions.graph, ends)] == [v.name for v in getattr(without.graph, ends)]


@pytest.mark.parametrize(
    ("model_type", "geometry"),
    [("gpt2", ROWS), ("gemma3_text", SLOTS), ("mixtral", ROWS)],
)
def test_the_same_tokens(new_sdk: str, model_type: str, geometry: dict[str, int]) -> None:
    check_same(model_type, geometry)


def test_the_same_tokens_from_both_releases(sdk: str) -> None:
    check_same("llama", ROWS)


@pytest.mark.parametrize("model_type", ["falcon", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_no_shape_hangs_on_what_a_layer_is_handed(tmp_path: Path, model_type: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(world(model_type)[0], continuous_batching=True)
    model = onnx.load(wrapped.export(tmp_path, use_onnx_subfunctions=True), load_external_data=False)
    layers = [function for function in model.functions if "Layer" in function.name]
    assert layers
    assert not any(node.op_type in ("Sin", "Cos") for function in model.functions for node in function.node)
    check_functions(model, profile_of("1.22"))
    first = layers[0].node[0]
    first.op_type, first.input[:] = "Reshape", [layers[0].input[0], layers[0].input[-1]]
    with pytest.raises(Refusal):
        check_functions(model, profile_of("1.22"))


@pytest.mark.parametrize(
    ("model_type", "geometry", "config", "options"),
    [
        ("llama", SLOTS, {"blocking_mode": "kv", "num_kv_blocks": 3}, {"use_onnx_subfunctions": True}),
        ("gemma2", ROWS, {"num_kv_blocks": 2, "num_q_blocks": 2, "head_block_size": 2}, {}),
        ("gpt_oss", SLOTS, {"num_kv_blocks": 2, "num_q_blocks": 2}, {}),
        ("llama", SLOTS, {"num_kv_blocks": 3}, {"comp_ctx_lengths_decode": [24, 64], "comp_ctx_lengths_prefill": [32]}),
    ],
    ids=["functions", "window and cap", "sinks", "read in part"],
)
def test_attention_in_blocks(
    new_sdk: str, model_type: str, geometry: dict[str, int], config: dict[str, Any], options: dict[str, Any]
) -> None:
    model, asked = world(model_type)
    compiled, said = answers(model_type, geometry, {"enable_blocking": True, **config}, **options)
    assert said == [list(expect(model, prompt, NEW).tokens) for prompt in asked]
    names = {function.name for function in graph_of(compiled).functions}
    assert any("Blocked" in name for name in names if name.startswith("CachedAttention"))
