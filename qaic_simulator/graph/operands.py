"""Whether operands fit one another, where ONNX's own inference looks at the result only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import onnx

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.folding import attribute
from qaic_simulator.graph.layers import LAYERS, Shape, refuse


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
        return
    _check_indices(program, node, data[: indices[-1]])


def _scatter_elements(program: Program, node: onnx.NodeProto) -> None:
    data, indices, updates = map(program.shape, node.input)
    if indices != updates:
        refuse(program, node, f"data {data}, indices {indices} and updates {updates}")
    _gather_elements(program, node)


def _gather_elements(program: Program, node: onnx.NodeProto) -> None:
    """Along other axes than the one that is looked up, an element has the place that its index has."""
    data, indices, axis = program.shape(node.input[0]), program.shape(node.input[1]), attribute(node, "axis", 0)
    if len(data) != len(indices) or not -len(data) <= axis < len(data):
        refuse(program, node, f"data {data}, indices {indices} and axis {axis}")
        return
    others = [place for place in range(len(data)) if place != axis % len(data)]
    if any(indices[place] > data[place] for place in others):
        refuse(program, node, f"data {data} and indices {indices}")
    _check_indices(program, node, (data[axis],))


def _gather(program: Program, node: onnx.NodeProto) -> None:
    data, axis = program.shape(node.input[0]), attribute(node, "axis", 0)
    if -len(data) <= axis < len(data):  # inference has refused others
        _check_indices(program, node, (data[axis],))


def _gather_places(program: Program, node: onnx.NodeProto) -> None:
    data, indices = map(program.shape, node.input)
    skipped = attribute(node, "batch_dims", 0)
    if data[:skipped] != indices[:skipped]:
        refuse(program, node, f"data {data}, indices {indices} and {skipped} dimensions of batches")
    _check_indices(program, node, data[skipped : skipped + indices[-1]])


def _check_indices(program: Program, node: onnx.NodeProto, sizes: Shape) -> None:
    """Of indices that are constant, their last axis that of the sizes; nobody looks at others before their use."""
    indices = program.bound.constants.get(node.input[1])
    if indices is None or not indices.size:
        return
    each = indices.reshape(-1, len(sizes))
    low, high = each.min(axis=0).tolist(), each.max(axis=0).tolist()
    if any(not -size <= least <= most < size for least, most, size in zip(low, high, sizes, strict=True)):
        refuse(program, node, f"data {program.shape(node.input[0])} and indices {low} to {high}")


def _cumulated(program: Program, node: onnx.NodeProto) -> None:
    data, axis = program.shape(node.input[0]), program.bound.constants.get(node.input[1])
    if axis is not None and (axis.size != 1 or not -len(data) <= int(axis.reshape(-1)[0]) < len(data)):
        refuse(program, node, f"data {data} and axis {axis.tolist()}")


def _reversed(program: Program, node: onnx.NodeProto) -> None:
    data, lengths = map(program.shape, node.input)
    axes = [attribute(node, "batch_axis", 1), attribute(node, "time_axis", 0)]
    if sorted(axes) != [0, 1] or lengths != (data[axes[0]],):
        refuse(program, node, f"data {data}, lengths {lengths} and axes {axes}")


_CHECKS: Mapping[str, Callable[[Program, onnx.NodeProto], None]] = MappingProxyType(
    {
        **LAYERS,
        "CumSum": _cumulated,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_places,
        "Reshape": _reshape,
        "ReverseSequence": _reversed,
        "ScatterElements": _scatter_elements,
        "ScatterND": _scatter,
    }
)
