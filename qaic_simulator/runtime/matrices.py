"""Constant matrices in products: which they are, and what MXFP6 makes of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from qaic_simulator.graph.file import nodes_within
from qaic_simulator.graph.folding import attribute
from qaic_simulator.microscaling import round_mxfp6
from qaic_simulator.runtime.bodies import graphs_within, replace_items

ROUNDING_VARIABLE = "QAIC_SIM_ROUNDING"
"""Which way MXFP6 and MXINT8 round: even, nearest or floor."""


@dataclass(frozen=True)
class Matrix:
    """A constant behind a factor of a product."""

    name: str
    axis: int
    """The one that is summed along, counted from the end."""
    path: list[onnx.NodeProto]
    """The nodes between: transpositions, and choices from a bank."""

    @property
    def is_chosen(self) -> bool:
        """Whether it is a bank of matrices, of which a product takes some."""
        return any(node.op_type == "Gather" for node in self.path)


def rounding() -> str:
    """The way that is asked for."""
    return os.environ.get(ROUNDING_VARIABLE, "even")


def round_matrices(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> list[str]:
    """Give every product of matrices constants in MXFP6 that no other node reads; the names of new tensors."""
    producers = makers_of(graph)
    shapes = {name: value.shape for name, value in constants.items()}
    for part in graphs_within(graph):
        nodes: list[onnx.NodeProto] = []
        for node in part.node:
            for place, matrix in matrices_of(node, producers, shapes):
                rounded = f"{matrix.name}.mxfp6.{matrix.axis}"
                if rounded not in constants:
                    constants[rounded] = round_mxfp6(constants[matrix.name], matrix.axis, rounding())
                nodes += _copied_path(matrix.path, rounded, f".mxfp6.{place}.{node.output[0]}")
                node.input[place] = nodes[-1].output[0] if matrix.path else rounded
            nodes.append(node)
        replace_items(part.node, nodes)
    return [output for node in nodes_within(graph.node) for output in node.output if output not in producers]


def round_half_matrices(graph: onnx.GraphProto) -> list[str]:
    """The same for constants in float16, which lie in the graph itself."""
    values = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    before = set(values)
    names = round_matrices(graph, values)
    rounded = values.keys() - before
    graph.initializer.extend(numpy_helper.from_array(values[name].astype(np.float16), name) for name in sorted(rounded))
    return [*names, *rounded]


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node behind each name, in bodies too."""
    return {output: node for node in nodes_within(graph.node) for output in node.output}


def matrices_of(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, Matrix]]:
    """The places of a product's factors that are constants of these shapes, and these constants."""
    for place, axis in enumerate(_reduced_axes(node)):
        found = _find_matrix(node.input[place], axis, producers, shapes)
        if found is not None:
            yield place, found


def _reduced_axes(node: onnx.NodeProto) -> tuple[int, ...]:
    """The axis that each of the two factors is summed along, counted from the end."""
    if node.op_type == "MatMul":
        return -1, -2
    if node.op_type == "Gemm":
        return -2 if attribute(node, "transA") else -1, -1 if attribute(node, "transB") else -2
    return ()


def _find_matrix(
    name: str, axis: int, producers: Mapping[str, onnx.NodeProto], shapes: Mapping[str, Sequence[int]]
) -> Matrix | None:
    path: list[onnx.NodeProto] = []
    while name not in shapes:
        node = producers.get(name)
        if node is None or node.op_type not in ("Transpose", "Gather", "Identity"):
            return None
        if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
            return None
        if node.op_type == "Transpose":
            order = attribute(node, "perm", (1, 0))
            axis = order[axis] - len(order)
        path.insert(0, node)
        name = node.input[0]
    # What a bank chooses along is its first axis, which no product sums along.
    found = Matrix(name, axis, path)
    enough = max(3, 1 - axis) if found.is_chosen else max(2, -axis)
    return found if len(shapes[name]) >= enough else None


def _copied_path(path: list[onnx.NodeProto], source: str, suffix: str) -> Iterator[onnx.NodeProto]:
    for node in path:
        own = copy.deepcopy(node)
        own.input[0], own.output[0] = source, node.output[0] + suffix
        own.name = ""
        source = own.output[0]
        yield own
