"""Constants that float16 cannot hold, wherever they stand in a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from QEfficient.devices.cloud_ai_100.graph.half_range import within_half


def saved(folder: Path, far: float) -> Path:
    """x + initializer + constant + plain constants + a function's constant, and a weight in a file."""
    first = numpy_helper.from_array(np.array([far, -np.inf, 3.0], np.float32), "first")
    weight = numpy_helper.from_array(np.full((3, 300), 1e6, np.float32), "weight")
    nodes = [
        helper.make_node("Add", ["x", "first"], ["a"]),
        helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.array(far, np.float32))),
        helper.make_node("Constant", [], ["c"], value_float=-far),
        helper.make_node("Constant", [], ["d"], value_floats=[far, 1.0, -np.inf]),
        helper.make_node("Sum", ["a", "b", "c", "d"], ["e"]),
        helper.make_node("Shift", ["e"], ["f"], domain="own"),
        helper.make_node("MatMul", ["f", "weight"], ["y"]),
    ]
    body = [helper.make_node("Constant", [], ["s"], value_float=far), helper.make_node("Add", ["i", "s"], ["o"])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Shift", ["i"], ["o"], body, opsets[:1])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", infos[:1], infos[1:], [first, weight])
    model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    return folder / "m.onnx"


def constants(path: Path) -> list[float]:
    model = onnx.load(path)
    found = [numpy_helper.to_array(model.graph.initializer[0]).tolist()]
    for node in [*model.graph.node, *model.functions[0].node]:
        found += [np.ravel(helper.get_attribute_value(a)).tolist() for a in node.attribute if a.name != "value"]
        found += [numpy_helper.to_array(a.t).reshape(-1).tolist() for a in node.attribute if a.name == "value"]
    return [number for numbers in found for number in numbers]


def test_everything_is_clipped_but_minus_infinity(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    clipped = within_half(saved(tmp_path, 3e38), tmp_path / "scratch")
    assert clipped == tmp_path / "scratch" / "m.onnx"
    most = 65504.0
    assert constants(clipped) == [most, -np.inf, 3.0, most, -most, most, 1.0, -np.inf, most]
    assert (numpy_helper.to_array(onnx.load(clipped).graph.initializer[1]) == 1e6).all()
    assert constants(tmp_path / "m.onnx")[0] > 1e38  # the program that was exported stays as it is


def test_a_graph_within_the_range_is_used_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path, 65504.0)
    assert within_half(path, tmp_path / "scratch") == path
    assert not (tmp_path / "scratch").exists()
