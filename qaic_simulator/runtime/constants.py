"""The constants of a graph and of its bodies: their data comes in, and those in float32 come out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

from qaic_simulator.container import CONSTANTS
from qaic_simulator.runtime.bodies import graphs_within, replace_items
from qaic_simulator.runtime.settings import ExecutionError


def take_constants(model: onnx.ModelProto, raw: bytes) -> dict[str, np.ndarray]:
    """Take float32 constants out; the others stay, with their data."""
    constants: dict[str, np.ndarray] = {}
    for graph in graphs_within(model.graph):
        found = _constant_tensors(graph, raw) | _constant_nodes(graph, raw)
        constants |= {_name_within(graph, name): value for name, value in found.items()}
    return constants


def _constant_tensors(graph: onnx.GraphProto, raw: bytes) -> dict[str, np.ndarray]:
    rest, found = [], {}
    for tensor in graph.initializer:
        _fill(tensor, raw)
        if tensor.data_type == onnx.TensorProto.FLOAT:
            found[tensor.name] = numpy_helper.to_array(tensor)
        else:
            rest.append(tensor)
    replace_items(graph.initializer, rest)
    return found


def _constant_nodes(graph: onnx.GraphProto, raw: bytes) -> dict[str, np.ndarray]:
    rest, found = [], {}
    for node in graph.node:
        value = _constant_of(node, raw)
        if value is None:
            rest.append(node)
        else:
            found[node.output[0]] = value
    replace_items(graph.node, rest)
    return found


def _constant_of(node: onnx.NodeProto, raw: bytes) -> np.ndarray | None:
    """The value of a node that is a float32 constant."""
    for given in node.attribute:
        if node.op_type == "Constant" and given.name in ("value_float", "value_floats"):
            return np.asarray(helper.get_attribute_value(given), np.float32)
        if given.type == onnx.AttributeProto.TENSOR:
            _fill(given.t, raw)
            if node.op_type == "Constant" and given.t.data_type == onnx.TensorProto.FLOAT:
                return numpy_helper.to_array(given.t)
    return None


def _name_within(graph: onnx.GraphProto, name: str) -> str:
    """What a constant is called from now on: what a graph puts out is made by a node of its own."""
    if all(value.name != name for value in graph.output):
        return name
    graph.node.insert(0, helper.make_node("Identity", [f"{name}.constant"], [name]))
    return f"{name}.constant"


def _fill(tensor: onnx.TensorProto, raw: bytes) -> None:
    """Put a tensor's data, which the container keeps apart, into it."""
    if not external_data_helper.uses_external_data(tensor):
        return
    info = external_data_helper.ExternalDataInfo(tensor)
    start = int(info.offset or 0)
    end = start + int(info.length) if info.length else len(raw)
    if info.location != CONSTANTS or end > len(raw):
        raise ExecutionError(f"the data of {tensor.name} are not among the {len(raw)} bytes of {CONSTANTS}.")
    tensor.raw_data = raw[start:end]
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
