"""Roots of averaged squares, as norms take them: computed so that no square leaves the range of float16.

A number beyond 255 has a square that float16 does not hold, and activations are that large in many models. With `s` the
largest magnitude of a token, `sqrt(mean(x²) + e)` is `s · sqrt(mean((x / s)²) + e / s / s)`, in which nothing is larger
than `s`. Every node that there was keeps its name and its output's; so does what they give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from QEfficient.devices.cloud_ai_100.graph.half_range import nodes_of

SMALLEST = 2.0**-8
"""Of `s`: so large that `e / s / s` is in the range too, and so small that it is `s` wherever `e` does not decide."""
AVERAGES = ("ReduceMean", "ReduceSum")


@dataclass(frozen=True)
class _Norm:
    """The nodes of one."""

    square: onnx.NodeProto
    average: onnx.NodeProto
    shift: onnx.NodeProto
    root: onnx.NodeProto
    epsilon: str


def steady_norms(model: onnx.ModelProto) -> bool:
    """Rewrite them all, in place: in the graph, in its functions, and in the bodies of both."""
    constants = _constants(model)
    return sum(_steady(graph, constants) for graph in _graphs(model)) > 0


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """Everything that has a list of nodes."""
    yield model.graph
    yield from model.functions
    for node in nodes_of(model.graph, *model.functions):
        for attribute in node.attribute:
            yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The single numbers that graph and bodies name."""
    tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes_of(model.graph, *model.functions):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
            elif node.op_type == "Constant" and attribute.name == "value_float":
                tensors[node.output[0]] = numpy_helper.from_array(np.array(attribute.f, np.float32))
    small = (t for t in tensors.items() if t[1].data_location != onnx.TensorProto.EXTERNAL and np.prod(t[1].dims) <= 1)
    return {name: numpy_helper.to_array(tensor) for name, tensor in small}


def _steady(graph: Any, constants: Mapping[str, np.ndarray]) -> bool:
    norms = list(_norms(graph, constants))
    before: dict[str, list[onnx.NodeProto]] = {}
    instead: dict[str, list[onnx.NodeProto]] = {}
    for norm in norms:
        # Where the average is, and so is the constant with its axes, which in a function may stand behind the square.
        instead[norm.square.output[0]] = []
        before[norm.average.output[0]] = [*_scaled(norm, constants[norm.epsilon].dtype), norm.square]
        before[norm.shift.output[0]] = _shifted(norm)
        instead[norm.root.output[0]] = _restored(norm)
    nodes = []
    for node in graph.node:
        key = node.output[0] if node.output else ""
        nodes += [*before.get(key, ()), *instead.get(key, (node,))]
    if norms:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return bool(norms)


def _norms(graph: Any, constants: Mapping[str, np.ndarray]) -> Iterator[_Norm]:
    makers = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in _read(node))
    uses.update(value.name if hasattr(value, "name") else value for value in graph.output)
    for root in graph.node:
        shift = makers.get(root.input[0]) if root.op_type == "Sqrt" else None
        if shift is None or shift.op_type != "Add":
            continue
        for summand, epsilon in (tuple(shift.input), tuple(shift.input)[::-1]):
            average = makers.get(summand)
            if average is None or average.op_type not in AVERAGES or not _keeps_axes(average):
                continue
            square = makers.get(average.input[0])
            chain = (average.input[0], summand, root.input[0])
            if square is None or not _is_square(square, constants) or any(uses[name] != 1 for name in chain):
                continue
            if epsilon in constants and constants[epsilon].size == 1 and constants[epsilon].dtype.kind == "f":
                yield _Norm(square, average, shift, root, epsilon)
                break


def _read(node: onnx.NodeProto) -> Iterable[str]:
    """What a node reads, in its bodies too."""
    yield from node.input
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in body.node:
                yield from _read(inner)


def _keeps_axes(average: onnx.NodeProto) -> bool:
    attributes = {attribute.name: attribute.i for attribute in average.attribute}
    return attributes.get("keepdims", 1) == 1 and len(average.input) == 2 and bool(average.input[1])


def _is_square(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    exponent = constants.get(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2.0


def _scaled(norm: _Norm, dtype: np.dtype) -> list[onnx.NodeProto]:
    """What comes before the square, which is that of the scaled numbers then."""
    values, name = norm.square.input[0], norm.square.output[0]
    made = {part: f"{name}.{part}" for part in ("size", "largest", "least", "scale", "scaled")}
    least = numpy_helper.from_array(np.array(SMALLEST, dtype))
    norm.square.input[0] = made["scaled"]
    if norm.square.op_type == "Mul":
        norm.square.input[1] = made["scaled"]
    return [
        helper.make_node("Abs", [values], [made["size"]]),
        helper.make_node("ReduceMax", [made["size"], norm.average.input[1]], [made["largest"]], keepdims=1),
        helper.make_node("Constant", [], [made["least"]], value=least),
        helper.make_node("Max", [made["largest"], made["least"]], [made["scale"]]),
        helper.make_node("Div", [values, made["scale"]], [made["scaled"]]),
    ]


def _shifted(norm: _Norm) -> list[onnx.NodeProto]:
    """The epsilon in the measure of the scaled squares. Divided twice: the square of the scale may be too large."""
    scale, name = f"{norm.square.output[0]}.scale", norm.shift.output[0]
    place = list(norm.shift.input).index(norm.epsilon)
    norm.shift.input[place] = f"{name}.epsilon"
    return [
        helper.make_node("Div", [norm.epsilon, scale], [f"{name}.half"]),
        helper.make_node("Div", [f"{name}.half", scale], [f"{name}.epsilon"]),
    ]


def _restored(norm: _Norm) -> list[onnx.NodeProto]:
    """The root itself, and its product with the scale, which is the root as it was."""
    name = norm.root.output[0]
    root = onnx.NodeProto()
    root.CopyFrom(norm.root)
    root.output[0] = f"{name}.scaled"
    product = helper.make_node("Mul", [root.output[0], f"{norm.square.output[0]}.scale"], [name])
    return [root, product]
