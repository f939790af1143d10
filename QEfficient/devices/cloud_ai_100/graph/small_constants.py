"""Epsilons that float16 would make zero, raised to its smallest number: who divides by zero plus zero gets no number.

An epsilon is a constant that keeps a denominator, or what a logarithm is taken of, from zero; or the attribute of that
name. Each gets a constant of its own, for elsewhere the same number may mean something else.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from QEfficient.devices.cloud_ai_100.graph.half_range import FLOATS, SMALL, nodes_of, with_data

SMALLEST = 2.0**-24
"""The smallest positive number of float16."""
RAISING = {"Add": (0, 1), "Sum": None, "Max": None, "Clip": (1,)}
"""Operators that keep a value above a constant, and which of their operands that constant can be (None: all)."""
PASSING = ("Abs", "Cast", "CastLike", "Expand", "Identity", "Reshape", "Sqrt", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose result is zero where their first operand is."""


def raise_epsilons(model: onnx.ModelProto, folder: Path) -> bool:
    """Raise them in place; whether there were any. `folder` has the model's external data."""
    attributes = [_raise_attribute(node) for node in nodes_of(model.graph, *model.functions)]
    found = [_Scope(scope, folder).raise_epsilons() for scope in (model.graph, *model.functions)]
    return any([*attributes, *found])


def _raise_attribute(node: onnx.NodeProto) -> bool:
    small = [given for given in node.attribute if given.name == "epsilon" and 0 < given.f < SMALLEST]
    for given in small:
        given.f = SMALLEST
    return bool(small)


class _Scope:
    """A graph or a function, with the bodies in it."""

    def __init__(self, scope: Any, folder: Path) -> None:
        self._scope, self._folder = scope, folder
        self._makers = {name: node for node in nodes_of(scope) for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes_of(scope):
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._tensors = {tensor.name: tensor for tensor in getattr(scope, "initializer", ())}

    def raise_epsilons(self) -> bool:
        """Whether there were any."""
        raised = list(self._epsilons())
        for node, place, chain in raised:
            self._give(node, place, chain)
        return bool(raised)

    def _epsilons(self) -> Iterator[tuple[onnx.NodeProto, int, list[onnx.NodeProto]]]:
        """Nodes, the places of their epsilons, and the nodes through which these come, the last first."""
        for node in nodes_of(self._scope):
            if node.op_type not in RAISING or node.domain or not self._is_divided_by(node.output[0]):
                continue
            for place in RAISING[node.op_type] or range(len(node.input)):
                chain = self._chain(node.input[place]) if place < len(node.input) else None
                if chain is not None:
                    yield node, place, chain

    def _is_divided_by(self, name: str) -> bool:
        return any(
            self._divides(node, name) or (node.op_type in PASSING and self._is_divided_by(node.output[0]))
            for node in self._readers.get(name, ())
            if not node.domain and node.input
        )

    def _divides(self, node: onnx.NodeProto, name: str) -> bool:
        if node.op_type == "Pow" and node.input[0] == name:
            exponent = self._value(node.input[1])
            return exponent is not None and bool((exponent < 0).any())
        return node.op_type in ("Reciprocal", "Log") or (node.op_type == "Div" and node.input[1] == name)

    def _chain(self, name: str) -> list[onnx.NodeProto] | None:
        """The nodes between a constant that is too small and where it is read; None if it is none."""
        chain: list[onnx.NodeProto] = []
        while (maker := self._makers.get(name)) is not None and maker.op_type in PASSING:
            chain.append(maker)
            name = maker.input[0]
        value = self._value(name)
        if value is None or value.dtype.kind != "f" or not ((value > 0) & (value < SMALLEST)).any():
            return None
        return [*chain, _constant(value, name)]

    def _value(self, name: str) -> np.ndarray | None:
        """Of a small constant."""
        maker, tensor = self._makers.get(name), self._tensors.get(name)
        if maker is not None and maker.op_type == "Constant" and not maker.domain:
            return _value_of(maker)
        if tensor is None or tensor.data_type not in FLOATS or np.prod(tensor.dims, dtype=int) * 4 > SMALL:
            return None
        return numpy_helper.to_array(with_data(tensor, self._folder))

    def _give(self, node: onnx.NodeProto, place: int, chain: list[onnx.NodeProto]) -> None:
        """Let the node read copies of the chain, which begins with a constant that is large enough."""
        nodes = next(nodes for nodes in _lists(self._scope) if node in nodes)
        at = list(nodes).index(node)
        name = ""
        for number, made in enumerate(reversed(chain)):
            copy = onnx.NodeProto()
            copy.CopyFrom(made)
            if name:
                copy.input[0] = name
            name = f"{node.output[0]}.epsilon{place}.{number}"
            copy.output[0] = copy.name = name
            nodes.insert(at + number, copy)
        node.input[place] = name


def _lists(scope: Any) -> Iterator[MutableSequence[onnx.NodeProto]]:
    """The lists of nodes in a graph or a function, and in the bodies in it."""
    yield scope.node
    for node in nodes_of(scope):
        for attribute in node.attribute:
            yield from (graph.node for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs))


def _value_of(constant: onnx.NodeProto) -> np.ndarray | None:
    given = constant.attribute[0]
    if given.HasField("t"):
        return numpy_helper.to_array(given.t)
    if given.name not in ("value_float", "value_floats") or given.ref_attr_name:
        return None
    return np.array(helper.get_attribute_value(given), np.float32)


def _constant(value: np.ndarray, name: str) -> onnx.NodeProto:
    raised = np.where((value > 0) & (value < SMALLEST), SMALLEST, value).astype(value.dtype)
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(raised))
