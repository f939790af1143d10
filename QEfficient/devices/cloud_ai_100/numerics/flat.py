"""The graph of a program without functions, in which each node knows the node of the program that it came from.

Nodes inside a function cannot be named for themselves in a node-precision file that a compiler is sure to follow, since
it knows some functions by name and replaces them; the call can.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, shape_inference

from QEfficient.devices.cloud_ai_100.graph.half_range import with_data

FLOAT = int(onnx.TensorProto.FLOAT)
SELECTION = ("qefficient", "LastToken")
"""Of all tokens the last: taken out, so that one run gives the logits of a whole chunk."""
MOVING = frozenset(
    {"Cast", "CastLike", "Concat", "Constant", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"}
    | {"Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that make no numbers that were not there before."""


@dataclass(frozen=True)
class Kind:
    """Element type and number of dimensions of a tensor; None where nobody knows."""

    element: int
    rank: int | None


class FlatGraph:
    """Nodes in order, and what is known of their tensors."""

    def __init__(self, path: Path, all_tokens: bool) -> None:
        """`path`: what the compiler would be given. With `all_tokens` there are logits after every token of a run."""
        model = onnx.load(path, load_external_data=False)
        if all_tokens:
            _keep_all_tokens(model)
        self._mark_calls(model)
        self.model = inliner.inline_local_functions(model)
        self.folder = path.parent
        self.nodes: list[onnx.NodeProto] = list(self.model.graph.node)

    @staticmethod
    def _mark_calls(model: onnx.ModelProto) -> None:
        """Give each call a function of its own, whose nodes carry the call's name through the inlining."""
        functions = {(function.domain, function.name): function for function in model.functions}
        for node in list(model.graph.node):
            mark = node.output[0] if node.output else ""
            for each in within([node]):
                if (each.domain, each.op_type) in functions:
                    _own_function(model, functions, each, mark)
                each.doc_string = mark

    def owner(self, node: onnx.NodeProto) -> str:
        """First output of the program's node that this one is, or is part of."""
        return node.doc_string or node.output[0]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        graph = shape_inference.infer_shapes(self.model).graph
        found: dict[str, Kind] = {}
        for scope in (*(body for node in within(graph.node) for body in bodies(node)), graph):
            found |= {tensor.name: Kind(int(tensor.data_type), len(tensor.dims)) for tensor in scope.initializer}
            for value in (*scope.input, *scope.output, *scope.value_info):
                tensor = value.type.tensor_type
                if tensor.elem_type:
                    rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
                    found[value.name] = Kind(int(tensor.elem_type), rank)
        for node in self.all_nodes:
            first = found.get(node.input[0], Kind(0, None)) if node.input else Kind(0, None)
            for output in filter(None, node.output):  # operators outside ONNX work on floats of one type
                found.setdefault(output, Kind(first.element, None))
        return found

    def is_float(self, name: str) -> bool:
        return self.kinds.get(name, Kind(0, None)).element == FLOAT

    @cached_property
    def all_nodes(self) -> list[onnx.NodeProto]:
        """Those in bodies too, behind the node they are in; inlining gave all tensors names of their own."""
        return list(within(self.nodes))

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """In bodies too."""
        return {output: node for node in self.all_nodes for output in node.output if output}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """What reads a tensor, in bodies too."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.all_nodes:
            for name in dict.fromkeys(filter(None, node.input)):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Nodes of the graph that read a tensor themselves or in their bodies."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(reads(node)):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """Float constants, those in external files without their data."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer if tensor.data_type == FLOAT}
        for node in self.all_nodes:
            tensor = constant_of(node)
            if tensor is not None and tensor.data_type == FLOAT:
                found[node.output[0]] = tensor
        return found

    def value(self, name: str) -> np.ndarray:
        """The numbers of a constant."""
        return numpy_helper.to_array(with_data(self.constants[name], self.folder))

    @cached_property
    def computed(self) -> list[str]:
        """Float tensors that are not the same in every run, in the order in which they are made."""
        fixed = {tensor.name for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if all(name in fixed for name in reads(node)) and not any(bodies(node)):
                fixed |= set(node.output)
        return [name for node in self.nodes for name in node.output if self.is_float(name) and name not in fixed]

    @cached_property
    def inside(self) -> dict[str, list[str]]:
        """Float tensors that the bodies of recurrent nodes compute in each step, by the node's first output."""
        found = {}
        for node in self.nodes:
            if node.op_type == "Scan" and not node.domain:
                made = (
                    n
                    for body in bodies(node)
                    for inner in body.node
                    if inner.op_type not in MOVING
                    for n in inner.output
                )
                found[node.output[0]] = [name for name in made if self.is_float(name)]
        return found

    @property
    def measurable(self) -> list[str]:
        """All tensors of which measures can be taken."""
        return [*self.computed, *(name for names in self.inside.values() for name in names)]


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def within(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, each before those of its bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from within(body.node)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, also inside its bodies."""
    yield from filter(None, node.input)
    for body in bodies(node):
        inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        for inner in body.node:
            yield from (name for name in reads(inner) if name not in inside)
            inside |= set(inner.output)


def _keep_all_tokens(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if (node.domain, node.op_type) == SELECTION:
            kept = helper.make_node("Identity", node.input[:1], node.output, name=node.name)
            node.CopyFrom(kept)
    for value in model.graph.output:  # shapes as they were before: nothing else may hold them against the graph
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _own_function(
    model: onnx.ModelProto,
    functions: dict[tuple[str, str], onnx.FunctionProto],
    call: onnx.NodeProto,
    mark: str,
) -> None:
    own = copy.deepcopy(functions[call.domain, call.op_type])
    own.name = call.op_type = f"{own.name}_{len(model.functions)}"
    del own.value_info[:]
    for node in within(own.node):
        node.doc_string = mark
    model.functions.append(own)
    placed = model.functions[-1]
    for node in list(within(placed.node)):
        if (node.domain, node.op_type) in functions:
            _own_function(model, functions, node, mark)


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a node that is a constant of floats or of a tensor holds."""
    if node.op_type != "Constant" or node.domain:
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: onnx.TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), np.float32)
            return numpy_helper.from_array(value, node.output[0])
    return None
