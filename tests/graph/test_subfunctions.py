"""Layers as functions: graphs made by hand, one for each thing that can go wrong, and tiny models."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime
import pytest

from QEfficient.graph.exporter import Source, write_program
from QEfficient.graph.passes import add_bodies, fold_and_clean
from QEfficient.graph.subfunctions import SCOPES, layers_to_functions
from QEfficient.program import GraphSpec, TensorSpec
from QEfficient.specs import ExportSpec
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import tiny_model

LAYERS = {"layer0": "ToyLayer", "layer1": "ToyLayer"}
HEAD = '<ir_version: 10, opset_import: ["" : 18]> toy (float[n,2] x, int64[n,1] position_ids) => (float[n,2] y) '
WEIGHTS = "<float[2] w0 = {1.5, -2.0}, float[2] w1 = {0.5, 3.0}> "


def toy(body: str, weights: str = WEIGHTS) -> ir.Model:
    """A graph in ONNX's text form; a node called like a layer is one of its nodes."""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEAD + weights + "{" + body + "}"))
    model = ir.serde.deserialize_model(proto)
    for node in model.graph:
        node.metadata_props[SCOPES] = repr(["", node.name, "aten"])
        node.name = None
    return model


def result(model: ir.Model) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    feed = {"x": np.array([[1, 2], [3, -4], [0.5, 6]], np.float32), "position_ids": np.array([[0], [4], [7]])}
    computed: np.ndarray = session.run(None, {name.name: feed[name.name] for name in session.get_inputs()})[0]
    return computed


def cut(body: str, weights: str = WEIGHTS) -> ir.Model:
    """The graph with its layers cut out, after checking that it computes the same, folded and not."""
    wanted = result(toy(body, weights))
    model = toy(body, weights)
    layers_to_functions(model, LAYERS)
    np.testing.assert_array_equal(result(model), wanted)
    fold_and_clean(model)
    add_bodies(model)
    np.testing.assert_array_equal(result(model), wanted)
    return model


def functions(model: ir.Model) -> dict[str, ir.Function]:
    return {function.name: function for function in model.functions.values()}


def operators(nodes: Any) -> list[str]:
    return [node.op_type for node in nodes]


ADD_AND_SCALE = """
    [layer0] two = Constant<value_float = 2.0>()
    [layer0] a = Mul(x, w0)
    [layer0] b = Add(a, two)
    [layer1] c = Mul(b, w1)
    [layer1] y = Add(c, two)"""


def test_equal_layers_share_a_function() -> None:
    model = cut(ADD_AND_SCALE)
    assert operators(model.graph) == ["ToyLayer", "ToyLayer"]
    function = functions(model)["ToyLayer"]
    assert function.domain == "qefficient" and operators(function) == ["Mul", "Constant", "Add"]
    assert [[value.name for value in node.inputs] for node in model.graph] == [["x", "w0"], ["b", "w1"]]
    assert list(model.graph.initializers) == ["w0", "w1"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[layer1] y = Add(c, two)", "[layer1] y = Sub(c, two)"),
        ("[layer1] y = Add(c, two)", "[layer1] three = Constant<value_float = 3.0>() [layer1] y = Add(c, three)"),
        ("c = Mul(b, w1)", "c = Mul(w1, b)"),
        ("c = Mul(b, w1)", "c = Mul(b, x)"),
    ],
    ids=["another operator", "another constant", "another order", "another shape"],
)
def test_layers_that_differ_do_not(old: str, new: str) -> None:
    model = cut(ADD_AND_SCALE.replace(old, new))
    assert operators(model.graph) == ["ToyLayer", "ToyLayer_1"]


def test_a_taken_name_is_left_alone() -> None:
    model = toy(ADD_AND_SCALE)
    value = ir.Value(name="v")
    graph = ir.Graph([value], [value], nodes=[], opset_imports={"": 18}, name="ToyLayer")
    model.functions["qefficient", "ToyLayer", ""] = ir.Function("qefficient", "ToyLayer", graph=graph, attributes=[])
    layers_to_functions(model, LAYERS)
    assert operators(model.graph) == ["ToyLayer_1", "ToyLayer_1"]


def test_constant_expressions_are_copied_and_positions_shared_from_outside() -> None:
    model = cut(
        """
    [layer0] one = Constant<value_int = 1>()
    [layer0] axis = Identity(one)
    [layer0] shifted = Add(position_ids, one)
    [layer0] number = Cast<to = 1>(shifted)
    [layer0] angle = Sin(number)
    [layer0] a = Mul(x, angle)
    [layer0] b = CumSum(a, axis)
    [layer1] number_too = Cast<to = 1>(shifted)
    [layer1] angle_too = Sin(number_too)
    [layer1] c = Mul(b, angle_too)
    [layer1] y = CumSum(c, axis)""",
        "",
    )
    assert operators(model.graph) == ["Constant", "Add", "Cast", "Sin", "ToyLayer", "ToyLayer"]
    assert operators(functions(model)["ToyLayer"]) == ["Mul", "Constant", "CumSum"]


def test_a_reader_among_the_nodes_of_a_layer_moves_behind_it() -> None:
    model = cut("""
    [layer0] a = Mul(x, w0)
    [head] seen = Neg(a)
    [head] more = Exp(seen)
    [layer0] b = Relu(a)
    [layer1] c = Mul(b, w1)
    [layer1] d = Relu(c)
    [head] y = Add(d, more)""")
    assert operators(model.graph) == ["ToyLayer", "Neg", "Exp", "ToyLayer_1", "Add"]
    assert [len(function.outputs) for function in model.functions.values()] == [2, 1]


def test_a_node_on_the_way_out_and_back_belongs_to_the_layer() -> None:
    model = cut("""
    [layer0] a = Mul(x, w0)
    [unknown] inserted = Neg(a)
    [layer0] b = Add(a, inserted)
    [layer1] c = Mul(b, w1)
    [unknown] inserted_too = Neg(c)
    [layer1] y = Add(c, inserted_too)""")
    assert operators(model.graph) == ["ToyLayer", "ToyLayer"]


def test_a_layer_inside_another_stays_inline_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "QEfficient"):
        model = cut("""
        [layer0] a = Mul(x, w0)
        [layer1] c = Mul(a, w1)
        [layer0] b = Relu(a)
        [layer0] d = Add(b, c)
        [layer1] y = Relu(d)""")
    assert [record.getMessage().split()[0] for record in caplog.records] == ["layer0", "layer1"]
    assert not model.functions and operators(model.graph) == ["Mul", "Mul", "Relu", "Add", "Relu"]


BRANCH = """
    [layer{i}] {v}a = Mul({x}, w{i})
    [layer{i}] {v}total = ReduceSum<keepdims = 0>({v}a)
    [layer{i}] {v}up = Greater({v}total, zero)
    [layer{i}] {v} = If ({v}up) <
        then_branch = up () => ({v}then) {{ {v}s = Sub({v}a, half) {v}then = Mul({v}s, w{i}) }},
        else_branch = down () => ({v}else) {{ {v}else = Add({v}a, half) }}>"""


def test_bodies_may_read_what_is_outside_of_them() -> None:
    weights = WEIGHTS.replace("> ", ", float zero = {0.0}, float[2] half = {0.5, 0.25}> ")
    model = cut(BRANCH.format(i=0, v="b", x="x") + BRANCH.format(i=1, v="y", x="b"), weights)
    assert operators(model.graph) == ["ToyLayer", "ToyLayer"]
    assert [value.name for value in model.graph[0].inputs] == ["x", "w0", "zero", "half"]


# Tiny models: class names of the functions, in order.

MODELS = {
    "llama": ["LlamaDecoderLayer"],
    "gpt2": ["GPT2Block"],
    "gemma3_text": ["Gemma3DecoderLayer", "Gemma3DecoderLayer_1"],
    "mixtral": ["MixtralDecoderLayer"],
    "qwen3_next": ["Qwen3NextDecoderLayer", "Qwen3NextDecoderLayer_1"],
    "mamba": ["MambaBlock"],
}
SIZES = {"batch_size": 2, "ctx_len": 12, "full_batch_size": 3}
STEPS = ((0, 5), (5, 1), (6, 1))


class Program:
    """An exported program in ONNX Runtime, its states carried from call to call."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.spec = spec

    def _zeros(self, tensor: TensorSpec) -> np.ndarray:
        shape = [size if isinstance(size, int) else SIZES.get(size, 8) for size in tensor.shape]
        return np.zeros(shape, tensor.dtype)

    def outputs(self) -> Iterator[dict[str, np.ndarray]]:
        states = {state.input.name: self._zeros(state.input) for state in self.spec.states}
        for start, length in STEPS:
            tokens = np.arange(2 * length).reshape(2, length) * 7 % 190 + 4
            positions = np.tile(np.arange(start, start + length), (2, 1))
            if length > 1:
                positions[1, -1] = -1  # padding
            feed = {"input_ids": tokens, "position_ids": positions, **states}
            if self.spec.continuous_batching:
                feed["batch_index"] = np.array([[2], [0]])
            names = [output.name for output in self.session.get_outputs()]
            found = dict(zip(names, self.session.run(names, feed), strict=True))
            states = {state.input.name: found[state.output.name] for state in self.spec.states}
            yield found

    def ends(self) -> list[tuple[str, str, list[Any]]]:
        return [(e.name, e.type, e.shape) for e in (*self.session.get_inputs(), *self.session.get_outputs())]


def exports(model_type: str, batching: bool, folder: Path) -> tuple[GraphSpec, list[Path]]:
    """The plain program and the one with sub-functions, from one trace."""
    plain = ExportSpec(continuous_batching=batching)
    opened = QEFFAutoModelForCausalLM(tiny_model(model_type), continuous_batching=batching)
    source = opened._prepare(plain, lambda graph: None)
    traced, context = source.trace(source.module, source.graph)
    paths = []
    for name, spec in (("plain", plain), ("functions", replace(plain, subfunctions=True))):
        own: Source = replace(source, trace=lambda *_: (traced.clone(), context), stem=name)
        write_program(own, spec, folder)
        paths.append(folder / f"{name}.onnx")
    return source.graph, paths


@pytest.mark.parametrize(
    ("model_type", "batching"),
    [
        ("llama", False),
        ("llama", True),
        ("gpt2", True),
        ("gemma3_text", False),
        ("mixtral", True),
        ("qwen3_next", False),
        ("qwen3_next", True),
        ("mamba", False),
    ],
    ids=lambda value: {False: "static", True: "continuous"}.get(value, value),
)
def test_models_compute_the_same(model_type: str, batching: bool, tmp_path: Path) -> None:
    spec, paths = exports(model_type, batching, tmp_path)
    plain, cut_out = (Program(path, spec) for path in paths)
    assert cut_out.ends() == plain.ends()
    for wanted, found in zip(plain.outputs(), cut_out.outputs(), strict=True):
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    _check_file(onnx.load(paths[1], load_external_data=False), MODELS[model_type])
    onnx.checker.check_model(paths[1])


def _check_file(model: onnx.ModelProto, names: list[str]) -> None:
    found = {function.name: function for function in model.functions}
    assert [name for name in found if name.partition("_")[0].endswith(("DecoderLayer", "Layer", "Block"))] == names
    assert {node.op_type for node in model.graph.node} >= set(names)
    assert not any(node.op_type == "CachedAttention" for node in model.graph.node)
    for name in names:
        assert not {"Sin", "Cos"} & {node.op_type for node in found[name].node}
    used = {node.op_type for function in model.functions for node in function.node if node.domain}
    assert used <= set(found), "a body is missing"
    assert "layers_to_functions" in {entry.key: entry.value for entry in model.metadata_props}["qeff_transforms"]
