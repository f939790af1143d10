"""Differences in place of biases: tables, and nodes that subtract what the query's slot has from what each slot has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from QEfficient.devices.cloud_ai_100.graph.positional_part import POSITIONS
from QEfficient.devices.cloud_ai_100.graph.table_lookups import ROWS, clamp_positions
from QEfficient.program import COMPUTE_CONTEXT

PREFIX = "key_bias"
"""Of new names, which have no number between dots: who reads those takes it for a layer's."""


@dataclass(frozen=True)
class Bias:
    """An operand of a node: the numbers that it adds, and in which layout."""

    node: onnx.NodeProto
    place: int
    values: np.ndarray
    """[heads, slots]"""
    dtype: np.dtype
    """Of the operand."""
    is_flat: bool
    """Rows and heads are one axis."""


def insert_differences(graph: onnx.GraphProto, biases: Sequence[Bias], slots: int) -> None:
    """Let the nodes read differences of tables."""
    differences = _Differences(graph, slots)
    for bias in biases:
        bias.node.input[bias.place] = differences.of(bias)
    clamp_positions(graph, slots)
    place = next(place for place, node in enumerate(graph.node) if ROWS in node.output)
    for number, node in enumerate(differences.nodes.values()):
        node.name = node.output[0]
        graph.node.insert(place + 1 + number, node)


class _Differences:
    """The nodes that make them; who adds the same numbers, in whatever layer, reads the same."""

    def __init__(self, graph: onnx.GraphProto, slots: int) -> None:
        self.nodes: dict[str, onnx.NodeProto] = {}
        self._graph, self._slots = graph, slots
        self._reads_parts = any(value.name == COMPUTE_CONTEXT for value in graph.input)
        self._names: dict[tuple[Any, ...], str] = {}

    def of(self, bias: Bias) -> str:
        """A tensor [rows, heads, tokens, slots], or with rows and heads as one axis."""
        key = (bias.dtype, bias.values.shape, bias.values.tobytes())
        if key not in self._names:
            self._names[key] = f"{PREFIX}_{len(self._names)}"
            self._subtract_all(bias, self._names[key])
        return self._flat(self._names[key]) if bias.is_flat else self._names[key]

    def _subtract_all(self, bias: Bias, name: str) -> None:
        coarse = bias.values.astype(np.float16)
        fine = bias.values - coarse.astype(bias.values.dtype)
        if fine.any():
            tables = {f"{name}_coarse": coarse, f"{name}_fine": fine}
            self._make("Add", [self._subtract(table.astype(bias.dtype), part) for part, table in tables.items()], name)
        else:
            self._subtract(coarse.astype(bias.dtype), name)

    def _subtract(self, values: np.ndarray, name: str) -> str:
        """What each slot has, less what the slot of the query has."""
        table = f"{name}_table"
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values[:, None]), table))
        looked_up = self._make("Gather", [table, ROWS], f"{name}_looked_up", axis=2)
        of_query = self._make("Transpose", [looked_up], f"{name}_of_query", perm=[2, 0, 3, 1])
        if self._reads_parts:
            bounds = self._constant("first", 0), self._count(), self._constant("axis", 2)
            table = self._make("Slice", [table, *bounds], f"{name}_read")
        return self._make("Sub", [table, of_query], name)

    def _flat(self, name: str) -> str:
        tokens = self._make("Shape", [POSITIONS], f"{PREFIX}_tokens", start=1, end=2)
        sizes = [self._constant("rest", -1), tokens, self._count()]
        return self._make("Reshape", [name, self._make("Concat", sizes, f"{PREFIX}_shape", axis=0)], f"{name}_flat")

    def _count(self) -> str:
        """How many slots are read."""
        if self._reads_parts:
            return self._make("Shape", [COMPUTE_CONTEXT], f"{PREFIX}_slots")
        return self._constant("slots", self._slots)

    def _constant(self, name: str, number: int) -> str:
        return self._make(
            "Constant", [], f"{PREFIX}_{name}", value=numpy_helper.from_array(np.array([number], np.int64))
        )

    def _make(self, operator: str, operands: list[str], result: str, **attributes: Any) -> str:
        if result not in self.nodes:
            self.nodes[result] = helper.make_node(operator, operands, [result], **attributes)
        return result
