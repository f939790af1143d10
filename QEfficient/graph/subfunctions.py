"""Every decoder layer as a call of an ONNX function; identical layers share one.

The tracer notes on each node which modules it comes from, so a layer is the nodes that its module made. What a layer
reads from outside becomes an input, in the order of first use; what others read of it becomes an output, in the order
of production. Values that depend on constants alone are copied into each function, and so is what computes sizes
(`layer_sizes`). Values that depend on positions alone stay outside where several layers share them, as do the sines and
cosines of rotary positions.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from QEfficient.graph.layer_sizes import SizesOfLayers
from QEfficient.operators.functions import DOMAIN

logger = logging.getLogger(__name__)

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a traced node: the paths of the modules that it comes from, outermost first."""
POSITIONAL = ("position_ids", "batch_index")
ROTARY = ("Sin", "Cos")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def layers_to_functions(model: ir.Model, layers: Mapping[str, str]) -> None:
    """Cut the layers (path of the module → name of its class) out of the graph, which is left sorted.

    To be run before anything is folded or merged, so that layers share no nodes but those that the tracer shares. A
    layer that cannot be cut out stays where it is.
    """
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.sort()
    static = _depending_on(graph, lambda node, value: False)
    owners = _owners(graph, layers, static)
    _leave_outside(graph, owners, static)
    _give_sizes(graph, owners, static)
    common.RemoveUnusedNodesPass()(model)
    owners = {node: owners[node] for node in graph if node in owners}
    library = _Library(model)
    for path in dict.fromkeys(owners.values()):
        region = _region(graph, path, owners, static)
        if region is None:
            logger.info("%s stays inline: what it computes depends on other layers and they on it.", path)
            continue
        owners[library.call(region, layers[path], path)] = path
    common.RemoveUnusedNodesPass()(model)


# which nodes a layer has


def _owners(graph: ir.Graph, layers: Mapping[str, str], static: set[ir.Node]) -> dict[ir.Node, str]:
    """The layer of every node that has one. What is constant has none."""
    found = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        path = next((scope for scope in scopes if scope in layers), None)
        if path is not None and node not in static:
            found[node] = path
    return found


def _depending_on(graph: ir.Graph, allowed: Callable[[ir.Node, ir.Value], bool]) -> set[ir.Node]:
    """The nodes whose values come from constants, from what is `allowed` (reader, value), and from nothing else."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in RANDOM or node.domain or (not node.inputs and node.op_type != "Constant"):
            continue
        if all(value.producer() in found or allowed(node, value) for value in _reads(node)):
            found.add(node)
    return found


def _leave_outside(graph: ir.Graph, owners: dict[ir.Node, str], static: set[ir.Node]) -> None:
    """Take from the layers what depends on positions alone and is a rotation's angle or is read by others too."""

    def allowed(node: ir.Node, value: ir.Value) -> bool:
        sized = node.op_type == "Shape" and value.is_graph_input()
        return sized or value.is_initializer() or (value.is_graph_input() and value.name in POSITIONAL)

    positional = _depending_on(graph, allowed) - static
    holders = {inner: node for node in graph for inner in _with_inner([node])}
    pending = []
    for node, path in owners.items():
        if node in positional:
            readers = {owners.get(holders[user]) for value in node.outputs for user, _ in value.uses()}
            if node.op_type in ROTARY or readers - {path} or any(value.is_graph_output() for value in node.outputs):
                pending.append(node)
    while pending:
        node = pending.pop()
        if owners.pop(node, None) is not None:
            pending += [producer for value in _reads(node) if (producer := value.producer()) is not None]


def _give_sizes(graph: ir.Graph, owners: dict[ir.Node, str], static: set[ir.Node]) -> None:
    """Let every layer have nodes of its own for the sizes that it reads."""
    taken = {value.name for node in _with_inner(graph) for value in node.outputs}
    taken |= {value.name for value in (*graph.inputs, *graph.initializers.values())}
    sizes = SizesOfLayers(graph, static, lambda name: _fresh(name, taken))
    members: dict[str, list[ir.Node]] = {}
    for node in graph:
        if node in owners:
            members.setdefault(owners[node], []).append(node)
    for path, nodes in members.items():
        made = sizes.give_to((node, list(_with_inner([node]))) for node in nodes)
        owners.update(dict.fromkeys(made, path))


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _with_inner(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """The nodes, each followed by those of its bodies."""
    for node in nodes:
        yield node
        for graph in _inner_graphs(node):
            yield from _with_inner(graph)


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its bodies included, in order."""
    members = list(_with_inner([node]))
    inside = {value for member in members[1:] for value in member.outputs}
    for member in members:
        for graph in _inner_graphs(member):
            inside |= {*graph.inputs, *graph.initializers.values()}
    return list(dict.fromkeys(v for member in members for v in member.inputs if v is not None and v not in inside))


# a layer's part of the graph


@dataclass
class _Region:
    """The nodes of one layer and the values that cross its border."""

    nodes: list[ir.Node]
    """Of the layer alone, to be taken out of the graph."""
    body: list[ir.Node]
    """The same, with the constants that they read among them, each before its first reader."""
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    members: set[ir.Node]
    """The nodes and those of their bodies."""
    readers: list[ir.Node]
    """Nodes among the region's that depend on it: they belong behind it."""


def _region(graph: ir.Graph, path: str, owners: Mapping[ir.Node, str], static: set[ir.Node]) -> _Region | None:
    """The layer's region, with the nodes that lie on a way out of it and back; None if those are another layer's."""
    order = list(graph)
    own = {index: node for index, node in enumerate(order) if owners.get(node) == path}
    order = order[min(own) : max(own) + 1]
    after, before = set(own.values()), set(own.values())
    for node in order:
        if any(value.producer() in after for value in _reads(node)):
            after.add(node)
    for node in reversed(order):
        if node in before:
            before |= {producer for value in _reads(node) if (producer := value.producer()) is not None}
    nodes = [node for node in order if node in after and node in before]
    if any(owners.get(node, path) != path for node in nodes):
        return None
    members = set(_with_inner(nodes))
    body: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}

    def include(node: ir.Node) -> None:
        for value in _reads(node):
            producer = value.producer()
            if producer in static and producer not in body:
                include(producer)
            elif producer not in members and producer not in static:
                inputs[value] = None
        body[node] = None

    for node in nodes:
        include(node)
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in members for user, _ in value.uses())
    ]
    readers = [node for node in order if node in after and node not in before]
    return _Region(nodes, list(body), list(inputs), outputs, members, readers)


def _form(region: _Region) -> tuple[Any, ...]:
    """What the region computes: equal for two regions exactly if one function does for both."""
    numbers = {value: number for number, value in enumerate(region.inputs)}
    borders = tuple((value.dtype, _known(value.shape)) for value in region.inputs)
    return borders, _nodes_form(region.body, numbers), tuple(numbers[value] for value in region.outputs)


def _nodes_form(nodes: Iterable[ir.Node], numbers: dict[ir.Value, int]) -> tuple[Any, ...]:
    form = []
    for node in nodes:
        attributes = tuple((name, _attribute_form(node.attributes[name], numbers)) for name in sorted(node.attributes))
        inputs = tuple(None if value is None else numbers[value] for value in node.inputs)
        for value in node.outputs:
            numbers[value] = len(numbers)
        form.append((node.op_identifier(), inputs, len(node.outputs), attributes))
    return tuple(form)


def _attribute_form(attribute: ir.Attr, numbers: dict[ir.Value, int]) -> Any:
    if attribute.is_ref():
        return "reference", attribute.ref_attr_name
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
    if attribute.type == ir.AttributeType.GRAPH:
        return _graph_form(attribute.as_graph(), numbers)
    if attribute.type == ir.AttributeType.GRAPHS:
        return tuple(_graph_form(graph, numbers) for graph in attribute.as_graphs())
    return attribute.type, repr(attribute.value)


def _graph_form(graph: ir.Graph, numbers: dict[ir.Value, int]) -> tuple[Any, ...]:
    numbers = dict(numbers)
    held = []
    for value in (*graph.inputs, *graph.initializers.values()):
        numbers[value] = len(numbers)
        tensor = value.const_value
        held.append(None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.tobytes()))
    nodes = _nodes_form(graph, numbers)
    return tuple(held), nodes, tuple(numbers.get(value, -1) for value in graph.outputs)


def _known(shape: ir.Shape | None) -> tuple[int | None, ...] | None:
    """The sizes that are numbers: symbols mean something in the graph that they come from only."""
    return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


# functions and their calls


@dataclass
class _Library:
    """The functions made so far, by what they compute."""

    model: ir.Model
    functions: dict[tuple[Any, ...], ir.Function] = field(default_factory=dict)

    def call(self, region: _Region, class_name: str, path: str) -> ir.Node:
        """Put the call of a function in the region's place."""
        form = _form(region)
        function = self.functions.get(form)
        name = function.name if function is not None else self._free_name(class_name)
        graph = self.model.graph
        call = ir.Node(DOMAIN, name, region.inputs, num_outputs=len(region.outputs), name=f"node_{path}")
        call.metadata_props[SCOPES] = repr([".".join(path.split(".")[:end]) for end in range(path.count(".") + 2)])
        graph.insert_after(region.nodes[-1], call)
        for old, new in zip(region.outputs, call.outputs, strict=True):
            _take_place(graph, old, new, region.members)
        if function is None:
            graph.remove(region.nodes)
            self.functions[form] = self._function(region, name, path)
        else:
            for node in region.members:  # those inside bodies too: they would count as users of outer values
                for index in range(len(node.inputs)):
                    node.replace_input_with(index, None)
            graph.remove(region.nodes)
        graph.remove(region.readers)
        graph.insert_after(call, region.readers)
        return call

    def _free_name(self, class_name: str) -> str:
        taken = {function.name for function in self.model.functions.values() if function.domain == DOMAIN}
        name, count = class_name, 0
        while name in taken:
            count += 1
            name = f"{class_name}_{count}"
        return name

    def _function(self, region: _Region, name: str, path: str) -> ir.Function:
        """The function of a region whose nodes are in no graph any more: they move into it."""
        replaced: dict[ir.Value, ir.Value] = {}
        own = set(region.nodes)
        body = [node if node in own else _copy(node, replaced) for node in region.body]
        names = {value.name for node in body for value in node.outputs}
        for value in region.inputs:
            replaced[value] = ir.Value(name=_fresh(_local_name(value, path), names), type=value.type, shape=value.shape)
        for node in region.members:
            for index, read in enumerate(node.inputs):
                if read in replaced:
                    node.replace_input_with(index, replaced[read])
        for value in region.outputs:
            value.name = _fresh(_local_name(value, path), names - {value.name})
        inputs = [replaced[value] for value in region.inputs]
        for value in (*inputs, *(value for node in _with_inner(body) for value in node.outputs)):
            value.shape = None if value.shape is None else ir.Shape(_known(value.shape) or ())
        for node in _with_inner(body):
            node.metadata_props.clear()  # it names one of the layers
        graph = ir.Graph(inputs, region.outputs, nodes=body, name=name, opset_imports=self._imports(body))
        common.CommonSubexpressionEliminationPass()(ir.Model(graph, ir_version=self.model.ir_version))
        function = ir.Function(DOMAIN, name, graph=graph, attributes=[])
        self.model.functions[function.identifier()] = function
        self.model.opset_imports.setdefault(DOMAIN, 1)
        return function

    def _imports(self, body: list[ir.Node]) -> dict[str, int]:
        domains = sorted({"", *(node.domain for node in _with_inner(body))})
        return {domain: self.model.opset_imports.get(domain, 1) for domain in domains}


def _take_place(graph: ir.Graph, old: ir.Value, new: ir.Value, members: set[ir.Node]) -> None:
    """Make `new` what everybody but the members reads instead of `old`, under its name."""
    new.name, new.type, new.shape = old.name, old.type, old.shape.copy() if old.shape is not None else None
    for user, index in list(old.uses()):
        if user not in members:
            user.replace_input_with(index, new)
    for index, value in enumerate(list(graph.outputs)):
        if value is old:
            graph.outputs[index] = new


def _copy(node: ir.Node, replaced: dict[ir.Value, ir.Value]) -> ir.Node:
    inputs = [None if value is None else replaced[value] for value in node.inputs]
    copy = ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.type, new.shape, new.const_value = old.name, old.type, old.shape, old.const_value
        replaced[old] = new
    return copy


def _local_name(value: ir.Value, path: str) -> str:
    """A name without the layer's own path or number: a function serves several layers."""
    name = (value.name or "value").removeprefix(f"{path}.")
    return re.sub(r"\.\d+(?=_|$)", "", name)


def _fresh(name: str, taken: set[str | None]) -> str:
    """The name, numbered if it is taken; takes it."""
    fresh, count = name, 0
    while fresh in taken:
        count += 1
        fresh = f"{name}_{count}"
    taken.add(fresh)
    return fresh
