"""Sizes within layers that become functions: each layer computes them from the shapes of what it is handed.

A compiler that makes one program of all calls of a function refuses shapes that follow from the value of a parameter,
for that may be another at each call; the shape of a parameter is none of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

ARITHMETIC = frozenset(
    ("Abs", "Add", "Cast", "Concat", "Div", "Equal", "Gather", "Max", "Min", "Mod", "Mul", "Neg")
    + ("Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where")
)
LARGEST = 16
"""Numbers of a value that is a size, or several; what is longer, such as a range up to a size, is a tensor."""


@dataclass
class SizesOfLayers:
    """What computes sizes in a graph, and how layers are given nodes of their own for them."""

    graph: ir.Graph
    static: set[ir.Node]
    """Nodes that depend on constants only."""
    fresh_name: Callable[[str], str]
    """A name that no value has, made of another; it is taken then."""
    sizes: set[ir.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in self.graph:
            if _is_of_input(node) or self._is_arithmetic(node):
                self.sizes.add(node)

    def _is_arithmetic(self, node: ir.Node) -> bool:
        """Whether sizes come from it, and from nothing but sizes and constants."""
        if node.domain or node.op_type not in ARITHMETIC or not all(map(_may_be_size, node.outputs)):
            return False
        makers = [value.producer() for value in node.inputs if value is not None]
        return any(maker in self.sizes for maker in makers) and all(
            maker in self.sizes or maker in self.static for maker in makers
        )

    def give_to(self, nodes: Iterable[tuple[ir.Node, Iterable[ir.Node]]]) -> list[ir.Node]:
        """Let the nodes of one layer, in order and each with those of its bodies, read sizes from new nodes; returns
        these."""
        readers = [(node, list(within)) for node, within in nodes if node not in self.sizes]
        given = [value for _, within in readers for inner in within for value in inner.inputs if value is not None]
        shaped = [value for value in given if value.is_graph_input() and value.shape is not None]
        layer = _Layer(self, list(dict.fromkeys(shaped)))
        for node, within in readers:
            for inner in within:
                for index, value in enumerate(inner.inputs):
                    if value is not None and value.producer() in self.sizes:
                        inner.replace_input_with(index, layer.own(value, node))
        return layer.made


@dataclass
class _Layer:
    """One layer, and the nodes that it was given."""

    whole: SizesOfLayers
    shaped: list[ir.Value]
    """Inputs of the graph that the layer reads anyhow."""
    made: list[ir.Node] = field(default_factory=list)
    copies: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def own(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """The layer's own form of a size, computed before the node that is the first to read it."""
        maker = value.producer()
        if maker is None or maker not in self.whole.sizes:
            return value
        if value not in self.copies:
            if _is_of_input(maker):
                copy = self._shape(maker)
            else:
                given = [None if read is None else self.own(read, reader) for read in maker.inputs]
                copy = ir.Node("", maker.op_type, given, list(maker.attributes.values()))
            made = copy.outputs[0]
            made.name, made.type, made.shape = self.whole.fresh_name(str(value.name)), value.type, value.shape
            self.whole.graph.insert_before(reader, copy)
            self.made.append(copy)
            self.copies[value] = made
        return self.copies[value]

    def _shape(self, node: ir.Node) -> ir.Node:
        """The same size, of an input that the layer reads if there is one."""
        source = node.inputs[0]
        assert source is not None and source.shape is not None
        axes = range(len(source.shape))[slice(*(_number(node, name) for name in ("start", "end")))]
        for value in self.shaped if len(axes) == 1 else ():
            assert value.shape is not None
            sizes = [str(size) for size in value.shape]
            if (wanted := str(source.shape[axes[0]])) in sizes:
                axis = sizes.index(wanted)
                return ir.node("Shape", [value], {"start": axis, "end": axis + 1})
        return ir.Node("", "Shape", [source], list(node.attributes.values()))


def _is_of_input(node: ir.Node) -> bool:
    """Whether it says the shape of an input of the graph."""
    value = node.inputs[0] if node.op_type == "Shape" and not node.domain else None
    return value is not None and value.is_graph_input() and value.shape is not None


def _number(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def _may_be_size(value: ir.Value) -> bool:
    if value.shape is None:
        return True
    count = 1
    for size in value.shape:
        count *= size if isinstance(size, int) else LARGEST + 1
    return count <= LARGEST
