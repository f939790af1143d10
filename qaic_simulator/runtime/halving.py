"""Float math in float16: each operator computes in float32 from values that float16 has, and its results are rounded.

Bodies are converted with the graph around them. All names are taken to be made in one place of the whole (see
`bodies`), so that a tensor is cast once, where it is made, for whoever reads it in the bodies further in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qaic_simulator.graph.file import bodies_of
from qaic_simulator.graph.folding import attribute
from qaic_simulator.network_descriptor import NetworkDescriptor
from qaic_simulator.runtime.bodies import replace_items
from qaic_simulator.runtime.settings import ExecutionError, Pin

MOVERS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"}
    | {"ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that onnxruntime runs in float16 on a CPU; all others run in float32, and their results are rounded."""
UNROUNDED = ".unrounded"
"""Behind the name of a result in float32 that is rounded to float16 next."""

_SINGLE, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
_ROUNDED = -1
"""Asked of a tensor: float32 with values that float16 has."""
_DESCRIBED = {0: _SINGLE, 1: _HALF}

Nodes = list[onnx.NodeProto]


def node_rule(half: bool, fp16: Pin, fp32: Pin) -> Callable[[onnx.NodeProto], bool]:
    """Whether a node computes in float16."""
    return lambda node: node.output[0] in fp16 or (half and node.output[0] not in fp32)


class Halving:
    """Rewrites a graph node by node; each float tensor keeps its name and has one stored type, others are casts."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        types: Mapping[str, int],
        constants: Mapping[str, np.ndarray],
        is_half: Callable[[onnx.NodeProto], bool],
    ) -> None:
        self._graph, self._types, self._constants, self._is_half = graph, types, constants, is_half
        self._stored: dict[str, int] = {}
        self._homes: dict[str, Nodes] = {}
        """Where each tensor is made: the nodes of the graph or body so far."""
        self._made: dict[tuple[str, int], str] = {}

    def apply(self, descriptor: NetworkDescriptor) -> None:
        """Change the graph; inputs have the type that the descriptor gives them."""
        described = {binding.name: _DESCRIBED.get(binding.shape.type) for binding in descriptor.inputs}
        nodes: Nodes = []
        for value in self._graph.input:
            if value.type.tensor_type.elem_type == _SINGLE:
                stored = described.get(value.name)
                if stored is None:
                    raise ExecutionError(f"{value.name} is no float for the host, but one for the graph.")
                value.type.tensor_type.elem_type = stored
                self._store(value.name, stored, nodes)
        self._convert_nodes(self._graph, nodes)
        for value in self._graph.output:
            if value.name in self._stored:
                value.type.tensor_type.elem_type = self._stored[value.name]
        _finish(self._graph, nodes)

    def _store(self, name: str, kind: int, home: Nodes) -> None:
        self._stored[name], self._homes[name] = kind, home

    def _is_single(self, name: str) -> bool:
        return self._types.get(name) == _SINGLE

    def _convert_nodes(self, graph: onnx.GraphProto, nodes: Nodes) -> None:
        for node in graph.node:
            if bodies_of(node):
                self._convert_control(node, nodes)
            else:
                self._convert(node, nodes)

    def _convert_control(self, node: onnx.NodeProto, nodes: Nodes) -> None:
        """Bodies take and give what the node does: floats of one type."""
        wanted = _HALF if self._is_half(node) else _SINGLE
        node.input[:] = [self._as(name, wanted) for name in node.input]
        for body in bodies_of(node):
            self._convert_body(body, wanted)
        for name in filter(self._is_single, node.output):
            self._store(name, wanted, nodes)
        nodes.append(node)

    def _convert_body(self, body: onnx.GraphProto, wanted: int) -> None:
        nodes: Nodes = []
        for value in body.input:
            if self._is_single(value.name):
                self._store(value.name, wanted, nodes)
                _declare(value, wanted)
        self._convert_nodes(body, nodes)
        for value in body.output:
            if self._is_single(value.name):
                value.name = self._as(value.name, wanted)
                _declare(value, wanted)
        _finish(body, nodes)

    def _convert(self, node: onnx.NodeProto, nodes: Nodes) -> None:
        if node.op_type == "CastLike":
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, to=self._types[node.input[1]]))
        half = self._is_half(node)
        # Sums at the places that are scattered to have no float16 kernels.
        moves = half and node.op_type in MOVERS and not node.domain and not attribute(node, "reduction")
        wanted = _HALF if moves else _ROUNDED if half else _SINGLE
        for place, name in enumerate(node.input):
            # The scales of Resize are float32 whatever its data are.
            is_scale = node.op_type == "Resize" and place == 2
            node.input[place] = self._as(name, _SINGLE if is_scale else wanted)
        outputs = [(place, name) for place, name in enumerate(node.output) if self._is_single(name)]
        for _, name in outputs:
            self._store(name, _HALF if half else _SINGLE, nodes)
        for given in node.attribute:
            if moves and node.op_type == "Cast" and given.name == "to" and given.i == _SINGLE:
                given.i = _HALF
        nodes.append(node)
        if half and not moves:
            for place, name in outputs:
                node.output[place] = f"{name}{UNROUNDED}"
                nodes.append(helper.make_node("Cast", [node.output[place]], [name], to=_HALF))

    def _as(self, name: str, wanted: int) -> str:
        """The name of a tensor in the wanted type."""
        if name in self._constants:
            return self._constant(name, wanted)
        stored = self._stored.get(name)
        if stored is None or stored == wanted:
            return name
        if wanted == _ROUNDED and stored == _SINGLE:
            return self._cast(self._cast(name, _HALF), _SINGLE)
        return self._cast(name, _HALF if wanted == _HALF else _SINGLE)

    def _cast(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self._made:
            made = self._made[name, wanted] = f"{name}.{'half' if wanted == _HALF else 'single'}"
            home = self._homes[made] = self._homes[name]
            home.append(helper.make_node("Cast", [name], [made], to=wanted))
        return self._made[name, wanted]

    def _constant(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self._made:
            value = self._constants[name]
            if wanted != _SINGLE:
                with np.errstate(over="ignore"):
                    value = value.astype(np.float16)
            value = value if wanted == _HALF else value.astype(np.float32)
            made = self._made[name, wanted] = f"{name}.{'half' if wanted == _HALF else 'single'}.{wanted}"
            self._graph.initializer.append(numpy_helper.from_array(value, made))
        return self._made[name, wanted]


def _declare(value: onnx.ValueInfoProto, kind: int) -> None:
    """Say the type of a body's input or output where it was said before."""
    if value.type.tensor_type.elem_type:
        value.type.tensor_type.elem_type = kind


def _finish(graph: onnx.GraphProto, nodes: Nodes) -> None:
    replace_items(graph.node, nodes)
    # What it says of the types is no longer so.
    del graph.value_info[:]
