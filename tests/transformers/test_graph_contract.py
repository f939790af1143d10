"""The exported graph of a causal language model: what it is called with, and what plain ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_models import VOCAB, small_gemma2, small_llama

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError
from QEfficient.program import load_exported

ROWS = ("batch_size", "seq_len")
HEADS, HEAD_SIZE = 2, 8
PROMPT = [17, 60, 22, 81, 35, 7, 44, 92, 13, 28]
CONTEXT = 12


def export(model: Any, continuous_batching: bool = False, **options: Any) -> Path:
    return Path(QEFFAutoModelForCausalLM(model, continuous_batching).export(**options))


def read(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def ends(path: Path) -> dict[str, tuple[str, tuple[str | int, ...]]]:
    """Inputs, then outputs: name → dtype and axes, in the order of the graph."""
    graph = read(path).graph
    found = {}
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type)
        found[value.name] = (dtype, tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim))
    return found


def caches(slots: str = "batch_size", first: str = "ctx_len", dtype: str = "FLOAT", prefix: str = "") -> dict[str, Any]:
    """The states of two layers, as inputs; the axis of positions of the first may have a name of its own."""
    axes = enumerate((first, "ctx_len"))
    shapes = {layer: (dtype, (slots, HEADS, context, HEAD_SIZE)) for layer, context in axes}
    return {f"past_{kind}.{layer}{prefix}": shapes[layer] for layer in shapes for kind in ("key", "value")}


def retained(states: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_RetainedState": spec for name, spec in states.items()}


def contract(states: dict[str, Any], slots: bool = False, dtype: str = "FLOAT") -> dict[str, Any]:
    tokens = {"input_ids": ("INT64", ROWS), "position_ids": ("INT64", ROWS)}
    index = {"batch_index": ("INT64", ("batch_size", 1))} if slots else {}
    logits = {"logits": (dtype, ("batch_size", 1, VOCAB))}
    return {**tokens, **index, **states, **logits, **retained(states)}


# Names, dtypes, axes


def test_static_batching() -> None:
    found, wanted = ends(export(small_llama())), contract(caches())
    assert found == wanted
    assert list(found) == list(wanted), "the order is part of the contract"


def test_continuous_batching() -> None:
    found, wanted = ends(export(small_llama(), True)), contract(caches("full_batch_size"), slots=True)
    assert found == wanted
    assert list(found) == list(wanted)


def test_half_precision() -> None:
    model = QEFFAutoModelForCausalLM.from_pretrained(small_llama(), dtype=torch.float16)
    assert ends(Path(model.export())) == contract(caches(dtype="FLOAT16"), dtype="FLOAT16")


def test_rolling_buffers_have_an_axis_of_their_own() -> None:
    path = export(small_gemma2())
    assert ends(path) == contract(caches(first="sliding_window"))
    assert load_exported(path.parent).graphs["lm"].spec.windows == {"sliding_window": 8}


def test_rolling_buffers_on_request_hold_the_whole_context() -> None:
    assert ends(export(small_gemma2(), retain_full_kv=True)) == contract(caches())


def test_a_prefix_marks_keys_and_values() -> None:
    plain, marked = export(small_llama()), export(small_llama(), kv_cache_prefix="abc1")
    assert ends(marked) == contract(caches(prefix="_abc1"))
    assert marked.parent != plain.parent, "another graph has another hash"


@pytest.mark.parametrize("prefix", ["a-b", "a_b", "a b", "", "é!"])
def test_a_prefix_has_letters_and_digits_only(prefix: str) -> None:
    with pytest.raises(ValueError, match="letters and digits only"):
        export(small_llama(), kv_cache_prefix=prefix)


def test_subfunctions_leave_the_ends_alone() -> None:
    plain, functions = export(small_llama()), export(small_llama(), use_onnx_subfunctions=True)
    assert ends(functions) == ends(plain)
    assert functions.parent != plain.parent


@pytest.mark.parametrize("continuous_batching", [False, True])
def test_attention_is_one_node_with_a_body(continuous_batching: bool) -> None:
    model = read(export(small_llama(), continuous_batching))
    suffix = "CB" if continuous_batching else ""
    functions = {(function.domain, function.name) for function in model.functions}
    attention = [node for node in model.graph.node if node.op_type.startswith("CachedAttention")]
    assert len(attention) == 2 and all((node.domain, node.op_type) in functions for node in attention)
    assert {("com.qualcomm.cloud", f"CtxScatter{suffix}"), ("com.qualcomm.cloud", f"CtxGather{suffix}")} <= functions
    assert model.opset_import[0].version == 18
    used = {node.domain for nodes in (model.graph.node, *(f.node for f in model.functions)) for node in nodes}
    assert used - {""} <= {entry.domain for entry in model.opset_import}


def test_transforms_are_listed() -> None:
    properties = {entry.key: entry.value for entry in read(export(small_llama())).metadata_props}
    assert properties["qeff_transforms"].split(",")[:1] == ["fold_and_clean"]
    assert "clip_to_half" not in properties["qeff_transforms"], "for encoders only"


# In plain ONNX Runtime


class Program:
    """The graph with its state, fed by hand."""

    def __init__(self, path: Path, slots: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        garbage = np.linspace(-50, 50, slots * HEADS * CONTEXT * HEAD_SIZE, dtype=np.float32)
        self.states = {name: garbage.reshape(slots, HEADS, CONTEXT, HEAD_SIZE) for name in caches()}

    def run(self, tokens: list[list[int]], positions: list[list[int]], slots: list[int] | None = None) -> np.ndarray:
        feeds = {"input_ids": np.array(tokens), "position_ids": np.array(positions), **self.states}
        if slots is not None:
            feeds["batch_index"] = np.array(slots)[:, None]
        logits, *states = self.session.run(["logits", *retained(self.states)], feeds)
        self.states = dict(zip(self.states, states, strict=True))
        return np.asarray(logits)[:, 0]


@torch.no_grad()
def eager(tokens: list[int]) -> np.ndarray:
    """transformers' logits after the last token."""
    logits: np.ndarray = small_llama()(torch.tensor([tokens])).logits[0, -1].numpy()
    return logits


@pytest.fixture
def static() -> Program:
    return Program(export(small_llama()), slots=2)


@pytest.fixture
def continuous() -> Program:
    return Program(export(small_llama(), True), slots=3)


def test_chunks_with_padding_give_what_transformers_gives(static: Program) -> None:
    """Rows of 10 and 3 tokens in chunks of 4; the second row is idle from the second chunk on."""
    short = PROMPT[:3]
    rows = [short + [0]] + 2 * [[0] * 4]
    positions = [[0, 1, 2, -1]] + 2 * [[-1] * 4]
    padded, places = [*PROMPT, 0, 0], [*range(10), -1, -1]
    last = []
    for chunk in range(3):
        part = slice(4 * chunk, 4 * chunk + 4)
        last.append(static.run([padded[part], rows[chunk]], [places[part], positions[chunk]]))
    np.testing.assert_allclose(last[0][1], eager(short), atol=1e-4)
    np.testing.assert_allclose(last[2][0], eager(PROMPT), atol=1e-4)
    decoded = static.run([[5], [9]], [[10], [3]])
    np.testing.assert_allclose(decoded[0], eager([*PROMPT, 5]), atol=1e-4)
    np.testing.assert_allclose(decoded[1], eager([*short, 9]), atol=1e-4)


def test_padding_never_touches_the_state(static: Program) -> None:
    """Not even the last slot, to which an index of -1 could wrap around."""
    before = static.states
    static.run([[3, 4], [5, 6]], [[-1, -1], [-1, -1]])
    for name, state in static.states.items():
        np.testing.assert_array_equal(state, before[name])


def test_the_last_position_of_the_context(static: Program) -> None:
    tokens = [*PROMPT, 5, 9]
    logits = static.run([tokens, PROMPT + [0, 0]], [list(range(12)), [*range(10), -1, -1]])
    np.testing.assert_allclose(logits[0], eager(tokens), atol=1e-4)
    np.testing.assert_allclose(logits[1], eager(PROMPT), atol=1e-4)


def test_a_call_works_on_the_slots_it_names(continuous: Program) -> None:
    before = continuous.states
    logits = continuous.run([PROMPT], [list(range(10))], slots=[2])
    np.testing.assert_allclose(logits[0], eager(PROMPT), atol=1e-4)
    for name, state in continuous.states.items():
        np.testing.assert_array_equal(state[:2], before[name][:2])
        assert (state[2, :, :10] != before[name][2, :, :10]).any()
        np.testing.assert_array_equal(state[2, :, 10:], before[name][2, :, 10:])


def test_slots_in_any_order_with_idle_lines(continuous: Program) -> None:
    continuous.run([PROMPT], [list(range(10))], slots=[2])
    continuous.run([PROMPT[:3] + [0]], [[0, 1, 2, -1]], slots=[0])
    before = continuous.states
    logits = continuous.run([[5], [0], [9]], [[10], [-1], [3]], slots=[2, 1, 0])
    np.testing.assert_allclose(logits[0], eager([*PROMPT, 5]), atol=1e-4)
    np.testing.assert_allclose(logits[2], eager([*PROMPT[:3], 9]), atol=1e-4)
    for name, state in continuous.states.items():
        np.testing.assert_array_equal(state[1], before[name][1])


def test_a_shared_prefix_need_not_run_again(continuous: Program) -> None:
    """A later chunk sees what its slot holds, and gives the same as everything at once."""
    whole = continuous.run([PROMPT], [list(range(10))], slots=[1])
    again = continuous.run([PROMPT[6:]], [list(range(6, 10))], slots=[1])
    np.testing.assert_allclose(again, whole, atol=1e-5)


def test_a_reused_slot_starts_clean(continuous: Program) -> None:
    continuous.run([PROMPT], [list(range(10))], slots=[0])
    logits = continuous.run([[9, 9, 4]], [[0, 1, 2]], slots=[0])
    np.testing.assert_allclose(logits[0], eager([9, 9, 4]), atol=1e-4)


def test_misspelt_dtype() -> None:
    with pytest.raises(OptionError, match="dtype 'float23' is not one of float32, .*Did you mean 'float32'"):
        QEFFAutoModelForCausalLM.from_pretrained(small_llama(), dtype="float23")
