"""What follows from numbers in place of symbols: sizes and values, node by node."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qaic_simulator.graph.folding import FOLDED, BoundGraph, bind
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.verification.tiny_models import tiny_model

SHAPES = ("Reshape", "Expand", "Tile", "Slice", "Range", "ConstantOfShape", "Pad")


def bound(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str], **symbols: int) -> BoundGraph:
    """A graph over the input `x`, whose last node makes the output."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "graph", [x], [out])
    return bind(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), symbols)


def constant(name: str, value: object) -> onnx.NodeProto:
    tensor = onnx.numpy_helper.from_array(np.array(value, np.int64))
    return helper.make_node("Constant", [], [name], value=tensor)


def test_sizes_follow_from_symbols() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        constant("which", [1]),
        helper.make_node("Gather", ["sizes", "which"], ["length"]),
        constant("rest", [-1]),
        helper.make_node("Concat", ["length", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    found = bound(nodes, ["batch_size", "seq_len", 6], batch_size=2, seq_len=4)
    assert found.constants["wanted"].tolist() == [4, -1]  # type: ignore[union-attr]
    assert found.shapes["y"] == (4, 12) and found.is_static("y")
    assert not bound(nodes, ["batch_size", "seq_len", 6], batch_size=2).is_static("y")


def test_what_depends_on_an_input_is_no_constant() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wanted"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["wanted"], ["y"]),
    ]
    found = bound(nodes, [3])
    assert "wanted" not in found.constants and not found.is_static("y")


def test_the_size_of_a_value_that_was_worked_out() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        constant("first", [0]),
        helper.make_node("Gather", ["sizes", "first"], ["rows"]),
        constant("one", [1]),
        helper.make_node("Add", ["rows", "one"], ["more"]),
        helper.make_node("ConstantOfShape", ["more"], ["ones"]),
        helper.make_node("Shape", ["ones"], ["wanted"]),
        helper.make_node("Expand", ["x", "wanted"], ["y"]),
    ]
    assert bound(nodes, [1]).constants["wanted"].tolist() == [2]  # type: ignore[union-attr]


def test_operators_off_the_list_are_constant_without_a_value() -> None:
    """ONNX Runtime folds them; a compiler may not."""
    nodes = [
        constant("four", [4]),
        helper.make_node("Cast", ["four"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["wide"], ["root"]),
        helper.make_node("Cast", ["root"], ["wanted"], to=TensorProto.INT64),
        helper.make_node("Expand", ["x", "wanted"], ["y"]),
    ]
    found = bound(nodes, [1])
    assert "wanted" in found.constants and found.constants["wanted"] is None


@pytest.mark.parametrize(
    ("operator", "given", "attributes"),
    [
        ("Div", [np.array([-7, 7, -6, 6]), np.array([2, -2, 2, -2])], {}),
        ("Slice", [np.arange(10), np.array([8]), np.array([-11]), np.array([0]), np.array([-3])], {}),
        ("Slice", [np.arange(12).reshape(3, 4), np.array([1]), np.array([9]), np.array([1])], {}),
        ("Reshape", [np.arange(6), np.array([3, -1])], {}),
        ("Reshape", [np.arange(6).reshape(2, 3), np.array([0, 3, 1])], {}),
        ("Squeeze", [np.zeros((1, 2, 1), np.int64), np.array([2])], {}),
        ("Unsqueeze", [np.arange(3), np.array([0, -1])], {}),
        ("Gather", [np.arange(6).reshape(2, 3), np.array([-1])], {"axis": 1}),
        ("Expand", [np.arange(3), np.array([2, 1])], {}),
        ("Tile", [np.arange(3), np.array([2])], {}),
        ("Range", [np.array(2), np.array(9), np.array(3)], {}),
        ("Transpose", [np.arange(6).reshape(2, 3)], {"perm": [1, 0]}),
        ("ReduceProd", [np.arange(1, 5)], {"keepdims": 0}),
        ("ReduceSum", [np.arange(6).reshape(2, 3), np.array([1])], {}),
        ("Max", [np.array([1, 5]), np.array([3])], {}),
        ("Where", [np.array([True, False]), np.array([1, 2]), np.array([3])], {}),
        ("ConstantOfShape", [np.array([2, 2])], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folds_as_onnx_says(operator: str, given: list[np.ndarray], attributes: dict[str, object]) -> None:
    names = [f"i{number}" for number in range(len(given))]
    node = helper.make_node(operator, names, ["y"], **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), None)
        for n, v in zip(names, given, strict=True)
    ]
    kind = TensorProto.FLOAT if operator == "ConstantOfShape" else TensorProto.INT64
    graph = helper.make_graph([node], "one", infos, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (wanted,) = onnx.reference.ReferenceEvaluator(model).run(None, dict(zip(names, given, strict=True)))
    found = FOLDED[operator](node, given)
    assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


LARGE = {
    "ConstantOfShape": ([[10**12]], {}),
    "Expand": ([[1], [2**36]], {}),
    "Gather": ([np.zeros((2**12, 2**8), np.int64), np.zeros(2**13, np.int64)], {}),
    "Range": ([0, 2**40, 1], {}),
    "Tile": ([[1], [2**36]], {}),
    "Add": ([np.zeros((2**18, 1), np.int64), np.zeros(2**18, np.int64)], {}),
}


@pytest.mark.parametrize("operator", LARGE)
def test_what_is_too_large_to_work_out_takes_no_memory(operator: str) -> None:
    """It is known to be constant, as soon as it is known how large it would be."""
    given, attributes = LARGE[operator]
    names = [f"i{number}" for number in range(len(given))]
    nodes = [*map(constant, names, given), helper.make_node(operator, names, ["y"], **attributes)]
    tracemalloc.start()
    found = bound(nodes, [1])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "y" in found.constants and found.constants["y"] is None and found.is_static("y")
    assert most < 2**27


def test_the_elements_of_what_no_integer_can_count() -> None:
    assert bound([helper.make_node("Size", ["x"], ["y"])], [2**40, 2**40]).constants["y"] is None


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_integers_have_no_infinity(operator: str) -> None:
    nodes = [constant("one", [1]), constant("zero", [0]), helper.make_node(operator, ["one", "zero"], ["y"])]
    with pytest.raises(ZeroDivisionError, match="integer"):
        bound(nodes, [1])


def test_integers_are_divided_as_integers() -> None:
    """Beyond 2 ** 53, floats would give another result."""
    nodes = [constant("long", [2**60 + 1]), constant("one", [1]), helper.make_node("Div", ["long", "one"], ["y"])]
    assert bound(nodes, [1]).constants["y"].tolist() == [2**60 + 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma2"])
def test_exported_programs_become_static(tmp_path: Path, model_type: str, batches: bool) -> None:
    """Every size is a number, and every shape that a node is told is a constant that was worked out."""
    path = QEFFAutoModelForCausalLM(tiny_model(model_type), continuous_batching=batches).export(tmp_path / "exported")
    symbols = {"batch_size": 2, "seq_len": 8, "ctx_len": 64, "full_batch_size": 4, "full_batch_exec_size": 2}
    found = bind(onnx.load(path, load_external_data=False), {**symbols, "sliding_window": 32})
    outputs = [name for node in found.model.graph.node for name in node.output if name]
    assert not [name for name in outputs if not found.is_static(name)]
    told = [name for node in found.model.graph.node if node.op_type in SHAPES for name in node.input[1:] if name]
    assert told and not [name for name in told if found.constants.get(name) is None]
