"""A sum over the last axis and a vector added to it, for which OpenVINO needs help."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from QEfficient.devices.cpu.reductions import keep_reduced_axes


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMax", "ReduceMean"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_vector_is_added_to_the_right_axis(operator: str, rows: int) -> None:
    random = np.random.default_rng(0)
    bias, x = (random.standard_normal(shape).astype(np.float32) for shape in ((64,), (rows, 64, 4)))
    nodes = [
        helper.make_node(operator, ["x", "axes"], ["reduced"], keepdims=0),
        helper.make_node("Add", ["reduced", "bias"], ["y"]),
    ]
    constants = [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(np.array([-1]), "axes")]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64, 4])]
    wanted = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])]
    graph = helper.make_graph(nodes, "sum", given, wanted, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = ir.from_proto(made)
    keep_reduced_axes(model)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(ir.to_proto(model).SerializeToString()), "CPU")
    reduced = {"ReduceSum": x.sum(-1), "ReduceMax": x.max(-1), "ReduceMean": x.mean(-1)}[operator]
    np.testing.assert_allclose(compiled(x)[0], reduced + bias, atol=1e-5)
