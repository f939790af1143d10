"""A graph whose symbols are numbers and whose control flow is resolved as far as it can be.

An If whose condition is constant is its branch, and a Loop over a constant number of rounds is that many copies of its
body. A Scan stays; what its body makes is found by looking at the body as a graph of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qaic_simulator.graph.file import bodies_of, names_from_outside, node_text
from qaic_simulator.graph.folding import BoundGraph, attribute, bind
from qaic_simulator.profiles import Profile
from qaic_simulator.rules import GRAPH_RULES, Refusal

MOST_ROUNDS = 20
"""How often a Loop may go round, as each round is copied."""
MOST_REWRITES = 1000
"""How often control flow is looked at again: a Scan's shapes may follow from those of the Scan before it."""
STUMBLES = (
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)
"""What folding and inference raise over values that do not fit their operator."""


@dataclass(frozen=True)
class Program:
    """A graph for one specialization."""

    bound: BoundGraph
    types: Mapping[str, onnx.TypeProto]
    """Of all values whose type could be found."""
    profile: Profile

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """Those of the graph itself, in its order."""
        return tuple(self.bound.model.graph.node)

    def element_type(self, name: str) -> int:
        """The element type of a tensor; 0 if it is not known."""
        return int(self.types[name].tensor_type.elem_type) if name in self.types else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value that is static."""
        return tuple(size for size in self.bound.shapes[name] if isinstance(size, int))

    def is_folded(self, node: onnx.NodeProto) -> bool:
        """Whether a node is done with before the program runs."""
        return any(name in self.bound.constants for name in node.output if name)

    def refuse(self, rule: str, text: str, node: onnx.NodeProto | None = None) -> None:
        """Refuse the program, or return where the profile does not apply the rule."""
        self.profile.refuse(rule, node_text(node, self.bound.model, text) if node else text)


def bind_program(model: onnx.ModelProto, symbols: Mapping[str, int], profile: Profile) -> Program:
    """The graph with its symbols replaced, or a refusal of shapes that do not fit one another."""
    numbers = {name: size for name, size in symbols.items() if name}  # a dimension without a symbol has an empty one
    try:
        bound = bind(model, numbers)
        for _ in range(MOST_REWRITES):
            if not _rewrite(_program(bound, profile)):
                break
            bound = bind(bound.model, numbers)
    except STUMBLES as error:
        raise Refusal(GRAPH_RULES["graph.mismatch"], _misfit(error)) from error
    return _program(bound, profile)


def check_fit(program: Program) -> None:
    """Refuse operands that do not fit one another though the shapes of the results seem to be known."""
    try:
        onnx.shape_inference.infer_shapes(program.bound.model, check_type=True, strict_mode=True)
    except STUMBLES as error:
        program.refuse("graph.mismatch", _misfit(error))


def _misfit(error: Exception) -> str:
    return f"Operands do not fit: {' '.join(str(error).split())}"


def _program(bound: BoundGraph, profile: Profile) -> Program:
    inferred = onnx.shape_inference.infer_shapes(bound.model)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    types = {value.name: value.type for value in values}
    for tensor in inferred.graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return Program(bound, types, profile)


def _rewrite(program: Program) -> bool:
    """Resolve what can be resolved now; whether anything could."""
    graph = program.bound.model.graph
    nodes: list[onnx.NodeProto] = []
    changed = False
    for number, node in enumerate(graph.node):
        copies = _resolved(program, node, f"resolved{number}_{node.op_type}_")
        changed = changed or copies is not None or (node.op_type == "Scan" and _size_outputs(program, node))
        nodes += [node] if copies is None else copies
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _resolved(program: Program, node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto] | None:
    """The nodes that stand for an If or a Loop, or None where it stays."""
    if node.domain:
        return None
    if node.op_type == "If" and len(node.output) == 1:
        condition = program.bound.constants.get(node.input[0])
        if condition is None:
            return None
        branch = attribute(node, "then_branch" if condition.reshape(-1)[0] else "else_branch")
        return _copy(branch, {}, node.output, prefix)
    rounds = rounds_of_loop(program, node) if node.op_type == "Loop" else None
    return None if rounds is None else _unrolled(node, rounds, prefix)


def rounds_of_loop(program: Program, node: onnx.NodeProto) -> int | None:
    """How often a Loop goes round, if that is a constant, small, and nothing is collected on the way."""
    body = attribute(node, "body")
    limit, condition = program.bound.constants.get(node.input[0]), node.input[1]
    starts = not condition or program.bound.constants.get(condition)
    makers = {name: inner for inner in body.node for name in inner.output}
    going = body.output[0].name
    while going in makers and makers[going].op_type == "Identity":
        going = makers[going].input[0]
    if limit is None or starts is None or not bool(starts) or len(node.output) != len(node.input) - 2:
        return None
    rounds = int(limit.reshape(-1)[0])
    return rounds if going == body.input[1].name and 0 < rounds <= MOST_ROUNDS else None


def _unrolled(node: onnx.NodeProto, rounds: int, prefix: str) -> list[onnx.NodeProto]:
    body, carried, copies = attribute(node, "body"), list(node.input[2:]), []
    for number in range(rounds):
        start = f"{prefix}{number}_"
        counter = numpy_helper.from_array(np.array(number, np.int64))
        going = numpy_helper.from_array(np.array(True))
        copies.append(helper.make_node("Constant", [], [f"{start}counter"], value=counter))
        copies.append(helper.make_node("Constant", [], [f"{start}going"], value=going))
        given = [f"{start}counter", f"{start}going", *carried]
        made = [f"{start}goes_on", *(f"{start}carried_{place}" for place in range(len(carried)))]
        if number == rounds - 1:
            made[1:] = node.output
        names = {value.name: name for value, name in zip(body.input, given, strict=True)}
        copies += _copy(body, names, made, start)
        carried = made[1:]
    return copies


def _copy(body: onnx.GraphProto, given: Mapping[str, str], made: Sequence[str], prefix: str) -> list[onnx.NodeProto]:
    """The nodes of a body among those of its graph, its outputs called otherwise."""
    names = dict(given)
    names.update({name: prefix + name for node in body.node for name in node.output if name})
    names.update({tensor.name: prefix + tensor.name for tensor in body.initializer})
    constants = [helper.make_node("Constant", [], [names[t.name]], value=t) for t in body.initializer]
    results = [
        helper.make_node("Identity", [names.get(value.name, value.name)], [name])
        for value, name in zip(body.output, made, strict=False)
    ]
    return [*constants, *(_renamed(node, names) for node in body.node), *results]


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for body in bodies_of(copy):
        inside = {name for inner in body.node for name in inner.output} | {value.name for value in body.input}
        outer = {old: new for old, new in names.items() if old not in inside}
        nodes = [_renamed(inner, outer) for inner in body.node]
        del body.node[:]
        body.node.extend(nodes)
    return copy


def _size_outputs(program: Program, node: onnx.NodeProto) -> bool:
    """Write into a Scan's body what its outputs' shapes are; whether any was news."""
    if all(program.bound.is_static(name) for name in node.output if name):
        return False
    body = scan_body(program, node)
    changed = False
    for value in attribute(node, "body").output:
        if body is None or not body.bound.is_static(value.name):
            continue
        shape = helper.make_tensor_type_proto(1, body.shape(value.name)).tensor_type.shape
        changed = changed or shape != value.type.tensor_type.shape
        value.type.tensor_type.shape.CopyFrom(shape)
    return changed


def scanned_lengths(program: Program, node: onnx.NodeProto) -> tuple[int, ...]:
    """The lengths that a Scan goes over, as far as they are known."""
    count = attribute(node, "num_scan_inputs")
    names = node.input[len(node.input) - count :]
    axes = attribute(node, "scan_input_axes", [0] * count)
    pairs = [(program.bound.shapes.get(name), axis) for name, axis in zip(names, axes, strict=True)]
    sizes = [shape[axis] for shape, axis in pairs if shape is not None and -len(shape) <= axis < len(shape)]
    return tuple(size for size in sizes if isinstance(size, int))


def scan_body(program: Program, node: onnx.NodeProto) -> Program | None:
    """The body of a Scan as a graph of its own, or None while the shapes of its inputs are not known."""
    if not all(program.bound.is_static(name) for name in node.input):
        return None
    count = attribute(node, "num_scan_inputs")
    axes = attribute(node, "scan_input_axes", [0] * count)
    shapes = [list(program.shape(name)) for name in node.input]
    for shape, axis in zip(shapes[len(shapes) - count :], axes, strict=True):
        del shape[axis]
    return _bind_body(program, attribute(node, "body"), shapes)


def _bind_body(outer: Program, body: onnx.GraphProto, shapes: Sequence[Sequence[int]]) -> Program:
    model = onnx.ModelProto(ir_version=outer.bound.model.ir_version)
    model.opset_import.extend(outer.bound.model.opset_import)
    model.graph.CopyFrom(body)
    for value, shape in zip(model.graph.input, shapes, strict=True):
        kind = value.type.tensor_type.elem_type
        value.type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
    for name in sorted(names_from_outside(body)):
        _bring_in(outer, name, model.graph)
    return bind_program(model, {}, outer.profile)


def _bring_in(outer: Program, name: str, graph: onnx.GraphProto) -> None:
    """Make a value of the outer graph known in the graph of a body: as a constant, or as an input."""
    if name not in outer.bound.constants:
        shape = outer.bound.shapes.get(name)
        graph.input.append(helper.make_tensor_value_info(name, outer.element_type(name), shape))
        return
    value = outer.bound.constants[name]
    if value is not None:
        graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return
    # Constant, but not worked out: like data that lies elsewhere.
    kind, place = outer.element_type(name), onnx.TensorProto.EXTERNAL
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=outer.shape(name), data_location=place)
    graph.initializer.append(tensor)
