"""A graph with the card's roundings written into it, alone or beside itself as exported.

All math stays float32 and each result goes through float16 and back, which overflows as the card does. A tensor that a
node in fp32 makes is stored as it is; it is rounded where a node in float16 reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from QEfficient.devices.cloud_ai_100.graph.half_range import with_data
from QEfficient.devices.cloud_ai_100.numerics import measures
from QEfficient.devices.cloud_ai_100.numerics.flat import FLOAT, FlatGraph, bodies, reads
from QEfficient.devices.cloud_ai_100.numerics.matrices import Products, copied
from QEfficient.devices.cloud_ai_100.numerics.microscaling import round_mxfp6

CARD = "~card"
"""Behind the name of a tensor: its twin, as the card has it."""
HALF = int(onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Format:
    """How numbers are kept."""

    half: bool = False
    mxfp6: bool = False
    mxint8: bool = False
    fp32: frozenset[str] = frozenset()
    """First outputs of the program's nodes that stay in fp32 when all others are in float16."""


@dataclass
class CardGraph:
    """What `build` makes."""

    model: onnx.ModelProto
    names: dict[str, str]
    """The twin of each tensor that has one."""
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    """Rounded weights, which are inputs of the model."""
    measured: dict[str, list[str]] = field(default_factory=dict)
    """By output with measures, what they are of."""


def build(flat: FlatGraph, asked: Format, measured: Sequence[str] = ()) -> CardGraph:
    """The graph in a format. Where tensors are to be measured, the graph as exported stands beside it."""
    return _Builder(flat, asked).built(measured)


class _Builder:
    def __init__(self, flat: FlatGraph, asked: Format) -> None:
        self._flat, self._asked = flat, asked
        self._names: dict[str, str] = {}
        self._unrounded: set[str] = set()
        """Twins in fp32."""
        self._compressed: set[str] = set()
        """Constants in MXFP6, as products read them."""
        self._made: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._products = Products(flat.model.graph)
        self._matrices: dict[str, np.ndarray] = {}
        self._measured: dict[str, list[str]] = {}

    def built(self, measured: Sequence[str]) -> CardGraph:
        flat = self._flat
        graph = flat.model.graph
        inputs = [self._input(value) for value in graph.input if flat.is_float(value.name)]
        watched = {output: [name for name in names if name in measured] for output, names in flat.inside.items()}
        for node in flat.nodes:
            shared = not self._has_twin(node)
            if shared or measured:
                self._nodes.append(self._watched(node, watched.get(node.output[0] if node.output else "", [])))
            if not shared:
                self._convert(node)
        outputs = [value for value in graph.output if measured or value.name not in self._names]
        twins = (self._names[name] for name in flat.outputs if name in self._names)
        outputs += [helper.make_tensor_value_info(name, FLOAT, None) for name in twins]
        inputs += list(graph.input if measured else (v for v in graph.input if v.name not in self._names))
        for name, matrix in self._matrices.items():
            inputs.append(helper.make_tensor_value_info(name, FLOAT, matrix.shape))
        if measured:
            inside = {name for names in watched.values() for name in names}
            self._measured[measures.OUTPUT] = names = [name for name in measured if name not in inside]
            self._nodes += measures.nodes([(name, self._names[name], flat.kinds[name].rank) for name in names])
            outputs += [helper.make_tensor_value_info(name, FLOAT, None) for name in self._measured]
        made = helper.make_graph(self._nodes, "numerics", inputs, outputs, list(graph.initializer))
        opsets = list(flat.model.opset_import)
        model = helper.make_model(made, opset_imports=opsets, ir_version=flat.model.ir_version)
        return CardGraph(model, self._names, self._matrices, self._measured)

    def _watched(self, node: onnx.NodeProto, names: list[str]) -> onnx.NodeProto:
        """A recurrent node that also gives measures of what its body makes, for each step; others as they are. Twins
        are not there: the numbers are those of the graph as exported."""
        if not names:
            return node
        own, output = copied(node), f"{node.output[0]}~{measures.OUTPUT}"
        (body,) = bodies(own)
        step = f"{output}step"
        body.node.extend(measures.nodes([(name, name, self._flat.kinds[name].rank) for name in names], step))
        body.output.append(helper.make_tensor_value_info(step, FLOAT, [len(names) * measures.COUNT]))
        own.output.append(output)
        for attribute in own.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.append(0)
        self._measured[output] = names
        return own

    def _input(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        twin = copy.deepcopy(value)
        twin.name = self._names[value.name] = value.name + CARD
        return twin

    def _has_twin(self, node: onnx.NodeProto) -> bool:
        """Whether floats, or what floats decided, go in or out; constants are shared."""
        if all(name in self._flat.constants for name in node.output):
            return False
        if any(self._flat.is_float(name) for name in node.output):
            return True
        return any(name in self._names or name in self._flat.constants for name in reads(node))

    def _convert(self, node: onnx.NodeProto) -> None:
        half = self._asked.half and self._flat.owner(node) not in self._asked.fp32
        *between, own = self._compress(node) if self._asked.mxfp6 else [copied(node)]
        for step in between:  # these are no twins of anything
            step.input[1:] = [self._read(name, half) for name in step.input[1:]]
            self._nodes.append(step)
        names = {name: self._read(name, half) for name in reads(own)}
        own.input[:] = [names.get(name, name) for name in own.input]
        _rename_inside(own, names)
        if half:
            for body in bodies(own):
                self._round_inside(body)
        self._nodes.append(own)
        for place, name in enumerate(node.output):
            if name:
                own.output[place] = self._names[name] = name + CARD
        for place, name in enumerate(node.output):
            if half and self._flat.is_float(name):
                own.output[place] = f"{name}~exact"
                self._nodes += _rounding(own.output[place], self._names[name])
            elif name:
                self._unrounded.add(self._names[name])

    def _compress(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """A copy of a node with MXFP6 for the constant factors of products, behind what it needs."""
        nodes = self._products.rewritten(node)
        for name in self._products.taken.keys() - self._matrices.keys():
            matrix = self._products.taken[name]
            values = numpy_helper.to_array(with_data(matrix.tensor, self._flat.folder))
            self._matrices[name] = round_mxfp6(values, matrix.axis)
        self._compressed |= {*self._products.taken, *(output for step in nodes[:-1] for output in step.output)}
        return nodes

    def _read(self, name: str, half: bool) -> str:
        """The tensor that a node reads in place of `name`."""
        twin = self._names.get(name, name)
        is_full = twin in self._unrounded and self._flat.is_float(name)
        is_constant = name in self._flat.constants or name in self._compressed
        if not half or not (is_full or is_constant):
            return twin
        rounded = f"{twin}~half"
        if rounded not in self._made:
            self._made.add(rounded)
            self._nodes += _rounding(twin, rounded)
        return rounded

    def _round_inside(self, body: onnx.GraphProto) -> None:
        """Round what the nodes of a body make, and its constants; what it is given is rounded already."""
        nodes = []
        for tensor in body.initializer:
            if tensor.data_type == FLOAT:
                name, tensor.name = tensor.name, f"{tensor.name}~exact"
                nodes += _rounding(tensor.name, name)
        for node in body.node:
            for inner in bodies(node):
                self._round_inside(inner)
            nodes.append(node)
            for place, name in enumerate(node.output):
                if self._flat.is_float(name):
                    node.output[place] = f"{name}~exact"
                    nodes += _rounding(node.output[place], name)
        kept = [copied(node) for node in nodes]
        del body.node[:]
        body.node.extend(kept)


def _rounding(name: str, rounded: str) -> list[onnx.NodeProto]:
    """Through float16 and back."""
    between = f"{rounded}~16"
    return [
        helper.make_node("Cast", [name], [between], to=HALF),
        helper.make_node("Cast", [between], [rounded], to=FLOAT),
    ]


def _rename_inside(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Give the bodies of a node other names for what they read from outside."""
    for body in bodies(node):
        inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        inside |= {name for inner in body.node for name in inner.output}
        outer = {name: twin for name, twin in names.items() if name not in inside}
        for inner in body.node:
            for place, name in enumerate(inner.input):
                inner.input[place] = outer.get(name, name)
            _rename_inside(inner, outer)
