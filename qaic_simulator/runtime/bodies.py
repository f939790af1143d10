"""A graph with all the bodies in it, flattened as far as names go: a name is made in one place of the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import onnx

from qaic_simulator.graph.file import bodies_of


def graphs_within(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The bodies in a graph, inner ones first, then the graph: in this order nodes can be replaced as one goes."""
    inner = [found for node in graph.node for body in bodies_of(node) for found in graphs_within(body)]
    return [*inner, graph]


def replace_items(field: object, items: Iterable[onnx.NodeProto] | Iterable[onnx.TensorProto]) -> None:
    """Give a repeated field other items, which may be among those it has."""
    kept = copy.deepcopy(list(items))
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]


def name_apart(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Rename what bodies make where the name is taken, if only by another branch; all new names of each old one."""
    taken = _made_in(model.graph) | {""}
    renamed: dict[str, set[str]] = {}
    for node in model.graph.node:
        for body in bodies_of(node):
            _name_body(body, {}, taken, renamed)
    return renamed


def _made_in(graph: onnx.GraphProto) -> set[str]:
    made = {value.name for value in (*graph.input, *graph.initializer)}
    return made.union(*(node.output for node in graph.node)) - {""}


def _name_body(
    body: onnx.GraphProto, outside: Mapping[str, str], taken: set[str], renamed: dict[str, set[str]]
) -> None:
    names = dict(outside)
    for name in sorted(_made_in(body)):
        names[name] = _free_name(name, taken)
        taken.add(names[name])
        if names[name] != name:
            renamed.setdefault(name, set()).add(names[name])
    del body.value_info[:]
    for value in (*body.input, *body.output, *body.initializer):
        value.name = names.get(value.name, value.name)
    for node in body.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in bodies_of(node):
            _name_body(inner, names, taken, renamed)


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}.body{number}"
    return free


def infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, in bodies too."""
    types: dict[str, int] = {}
    whole = onnx.shape_inference.infer_shapes(model).graph
    for graph in graphs_within(whole):
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = int(value.type.tensor_type.elem_type)
        types |= {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    _fill_in(types, whole.node)
    return types


def _fill_in(types: dict[str, int], nodes: Iterable[onnx.NodeProto]) -> None:
    """Inference ends at operators outside ONNX, which work on floats of one type; it goes on from there."""
    for node in nodes:
        first = types.get(node.input[0], 0) if node.input else 0
        found = [first] * len(node.output)
        for body in bodies_of(node):
            for value, name in zip(body.input, node.input, strict=False):
                types[value.name] = types.get(value.name) or types.get(name, 0)
            _fill_in(types, body.node)
            results = body.output[1:] if node.op_type == "Loop" else body.output
            found = [types.get(value.name, 0) for value in results]
        for output, kind in zip(node.output, found, strict=False):
            types[output] = types.get(output) or kind
