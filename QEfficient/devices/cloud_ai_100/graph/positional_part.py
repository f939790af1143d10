"""The part of a graph that follows from positions alone, taken out and run by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from QEfficient.devices.cloud_ai_100.graph.half_range import with_data

POSITIONS = "position_ids"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
RESHAPING = frozenset({"Expand", "Identity", "Squeeze", "Transpose", "Unsqueeze"})
MOVING = RESHAPING | {"Cast", "Concat", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Split", "Tile"}

Symbols = Mapping[str, int]


class PositionalPart:
    """The nodes of a graph that need nothing but positions, constants and sizes that are known."""

    def __init__(self, model: onnx.ModelProto, folder: Path, symbols: Symbols) -> None:
        self.graph, self.symbols, self._model, self._folder = model.graph, symbols, model, folder
        self._inputs = {value.name: _dimensions(value) for value in self.graph.input}
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()
        """What follows from positions."""
        known = self._initializers.keys() | {POSITIONS, ""}
        for node in self.graph.node:
            if self._sizes_of(node) is not None or (_is_plain(node) and known.issuperset(node.input)):
                self._nodes.append(node)
                known |= set(node.output)
                if any(name in self.made or name == POSITIONS for name in node.input):
                    self.made |= set(node.output)

    @property
    def row_symbols(self) -> tuple[str, str] | None:
        """The symbols of rows and tokens."""
        found = [name for name in self._inputs.get(POSITIONS, ()) if isinstance(name, str)]
        return (found[0], found[1]) if len(found) == 2 else None

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self._nodes for name in node.output}

    @cached_property
    def computed(self) -> list[str]:
        """Floats of the main graph that some arithmetic with floats is behind."""
        part = shape_inference.infer_shapes(self._extract(sorted(self.made), self.symbols))
        floats = {v.name for v in part.graph.value_info if v.type.tensor_type.elem_type in FLOATS}
        floats |= {v.name for v in part.graph.output if v.type.tensor_type.elem_type in FLOATS}
        found: dict[str, None] = {}
        for node in self._nodes:
            if node.op_type not in MOVING or found.keys() & set(node.input):
                found |= dict.fromkeys(name for name in node.output if name in floats & self.made)
        return list(found)

    def evaluate(self, names: Sequence[str], positions: np.ndarray, symbols: Symbols) -> dict[str, np.ndarray]:
        """The values of tensors where these are the positions."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is left as it is
        rows, tokens = self.row_symbols or ("", "")
        sizes = {**symbols, rows: positions.shape[0], tokens: positions.shape[1]}
        model = self._extract(names, sizes)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(list(names), {POSITIONS: positions}), strict=True))

    def _extract(self, names: Sequence[str], sizes: Symbols) -> onnx.ModelProto:
        """A model of what these tensors need."""
        needed, nodes = set(names), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                found = self._sizes_of(node, sizes)
                nodes.append(node if found is None else _constant(node.output[0], found))
                needed |= set(nodes[-1].input)
        constants = [with_data(self._initializers[name], self._folder) for name in needed & self._initializers.keys()]
        inputs = [value for value in self.graph.input if value.name == POSITIONS]
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        graph = helper.make_graph(nodes[::-1], "positions", inputs, outputs, constants)
        return helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            functions=self._model.functions,
            ir_version=self._model.ir_version,
        )

    def _sizes_of(self, node: onnx.NodeProto, sizes: Symbols | None = None) -> list[int] | None:
        """What a node says of the shape of an input other than the positions; None if it does something else."""
        if node.op_type != "Shape" or node.domain or node.input[0] not in self._inputs.keys() - {POSITIONS}:
            return None
        known = {**self.symbols, **dict.fromkeys(self.row_symbols or (), 0), **(sizes or {})}
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        found = self._inputs[node.input[0]][bounds.get("start", 0) : bounds.get("end")]
        numbers = [known.get(size, -1) if isinstance(size, str) else size for size in found]
        return None if -1 in numbers else numbers


def _is_plain(node: onnx.NodeProto) -> bool:
    """Without a body that may use anything, and the same each time."""
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return node.op_type not in RANDOM and not any(attribute.type in graphs for attribute in node.attribute)


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))
