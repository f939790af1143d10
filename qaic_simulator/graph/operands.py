"""Whether operands fit one another, where ONNX's own inference looks at the result only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import onnx

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.folding import attribute

Shape = tuple[int, ...]


def check_operands(program: Program, node: onnx.NodeProto) -> None:
    """Refuse a node whose operands do not fit; those of unknown shape are another rule's."""
    check = _CHECKS.get(node.op_type)
    if check and all(program.bound.is_static(name) for name in (*node.input, node.output[0]) if name):
        check(program, node)


def _reshape(program: Program, node: onnx.NodeProto) -> None:
    given, made = program.shape(node.input[0]), program.shape(node.output[0])
    if prod(given) != prod(made):
        counts = f"different number of elements (in {prod(given)} vs. out {prod(made)})"
        program.refuse("graph.mismatch", f"Reshape: input shape {given} and output shape {made} have {counts}", node)


def _scatter(program: Program, node: onnx.NodeProto) -> None:
    data, indices, updates = map(program.shape, node.input)
    if not indices or updates != (*indices[:-1], *data[indices[-1] :]):
        text = f"ScatterND: Indices and updates must have same lengths! They have shapes {indices} and {updates}."
        program.refuse("nodes.scatter-lengths", text, node)


def _scatter_elements(program: Program, node: onnx.NodeProto) -> None:
    data, indices, updates = map(program.shape, node.input)
    if indices != updates or len(indices) != len(data):
        _refuse(program, node, f"data {data}, indices {indices} and updates {updates}")


def _gather_elements(program: Program, node: onnx.NodeProto) -> None:
    data, indices = map(program.shape, node.input)
    if len(data) != len(indices):
        _refuse(program, node, f"data {data} and indices {indices}")


def _gather(program: Program, node: onnx.NodeProto) -> None:
    """Of indices that are constant; others are looked at by nobody before they are used."""
    data, indices = program.shape(node.input[0]), program.bound.constants.get(node.input[1])
    axis = attribute(node, "axis", 0)
    if indices is None or not indices.size or not -len(data) <= axis < len(data):
        return
    if not -data[axis] <= indices.min() <= indices.max() < data[axis]:
        _refuse(program, node, f"data {data} and indices {indices.min()} to {indices.max()}")


def _convolution(program: Program, node: onnx.NodeProto) -> None:
    data, kernel = map(program.shape, node.input[:2])
    if data[1] != kernel[1] * attribute(node, "group", 1):
        _refuse(program, node, f"data {data} and a kernel {kernel}")


def _layer_norm(program: Program, node: onnx.NodeProto) -> None:
    data, axis = program.shape(node.input[0]), attribute(node, "axis", -1)
    for name in filter(None, node.input[1:]):
        scale = program.shape(name)
        if not _broadcasts(scale, data[axis:]):
            _refuse(program, node, f"data {data} and a scale {scale}")


def _broadcasts(shape: Shape, wanted: Shape) -> bool:
    """Whether a shape can be made to be another by repeating it."""
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, other) for size, other in pairs)


def _refuse(program: Program, node: onnx.NodeProto, shapes: str) -> None:
    program.refuse("graph.mismatch", f"{node.op_type}: {shapes} do not fit.", node)


_CHECKS: Mapping[str, Callable[[Program, onnx.NodeProto], None]] = MappingProxyType(
    {
        "Conv": _convolution,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "LayerNormalization": _layer_norm,
        "Reshape": _reshape,
        "ScatterElements": _scatter_elements,
        "ScatterND": _scatter,
    }
)
