"""Tables in place of what a graph computes: constants, nodes that look positions up, what goes with the old ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from QEfficient.devices.cloud_ai_100.graph.half_range import SMALL, nodes_of
from QEfficient.devices.cloud_ai_100.graph.positional_part import POSITIONS

PREFIX = "position_table"
ROWS, FIRST, LAST = f"{PREFIX}.rows", f"{PREFIX}.first", f"{PREFIX}.last"
IS_PADDING, NOT_PADDING, IS_BEYOND = f"{PREFIX}.is_padding", f"{PREFIX}.not_padding", f"{PREFIX}.is_beyond"


@dataclass(frozen=True)
class Axes:
    """Which axes of a tensor are the rows and the tokens of a row."""

    rows: int
    tokens: int

    def leading(self, values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values, (self.rows, self.tokens), (0, 1))

    def order(self, rank: int) -> list[int]:
        """The permutation that puts leading axes into their places."""
        others = iter(range(2, rank))
        places = {self.rows: 0, self.tokens: 1}
        return [places[axis] if axis in places else next(others) for axis in range(rank)]


@dataclass(frozen=True)
class Table:
    """The numbers of a tensor by position, and how they lie in it."""

    values: np.ndarray
    """[positions, …]"""
    axes: Axes


def insert(graph: onnx.GraphProto, tables: Mapping[str, Table], context: int, path: Path) -> None:
    """Look up what was computed, for positions below `context`."""
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name in tables:
                node.output[place] = computed(name)
    new: list[onnx.NodeProto] = []
    looked_up: dict[Any, str] = {}
    for name, table in tables.items():
        key = (table.values.shape, table.values.dtype.str, table.values.tobytes())
        if key not in looked_up:
            stored = _stored(f"{PREFIX}.{len(looked_up)}", table.values, path)
            graph.initializer.append(stored)
            looked_up[key] = f"{stored.name}.looked_up"
            new.append(helper.make_node("Gather", [stored.name, ROWS], [looked_up[key]], axis=0))
        new.append(_in_place(looked_up[key], name, table.axes.order(table.values.ndim + 1)))
    _put_first(graph, new)
    clamp_positions(graph, context)


def clamp_positions(graph: onnx.GraphProto, context: int) -> None:
    """Have `ROWS`, by which tables are looked up: the positions, 0 for padding, and the last one for those beyond the
    context. What a token there leaves behind is dropped, but it may run: scripts try tokens beyond the end."""
    if any(ROWS in node.output for node in graph.node):
        return
    kind = next(value for value in graph.input if value.name == POSITIONS).type.tensor_type.elem_type
    graph.initializer.append(helper.make_tensor(FIRST, kind, [], [0]))
    graph.initializer.append(helper.make_tensor(LAST, kind, [], [context - 1]))
    nodes = [
        helper.make_node("Less", [POSITIONS, FIRST], [IS_PADDING]),
        helper.make_node("Where", [IS_PADDING, FIRST, POSITIONS], [NOT_PADDING]),
        helper.make_node("Less", [LAST, POSITIONS], [IS_BEYOND]),
        helper.make_node("Where", [IS_BEYOND, LAST, NOT_PADDING], [ROWS]),
    ]
    _put_first(graph, nodes)


def _put_first(graph: onnx.GraphProto, new: list[onnx.NodeProto]) -> None:
    for node in new:
        node.name = node.output[0]
    nodes = [*new, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _in_place(source: str, name: str, order: list[int]) -> onnx.NodeProto:
    """A tensor under its old name, its axes where they were."""
    if order == sorted(order):
        return helper.make_node("Identity", [source], [name])
    return helper.make_node("Transpose", [source], [name], perm=order)


def computed(name: str) -> str:
    """What a tensor is called that a table took the name of."""
    return f"{name}.computed"


def _stored(name: str, values: np.ndarray, path: Path) -> TensorProto:
    """A constant, in a file if it is not small: those of a long context are more than one message may hold."""
    tensor = numpy_helper.from_array(values, name)
    if values.nbytes <= SMALL:
        return tensor
    with path.open("ab") as file:
        offset = file.tell()
        file.write(tensor.raw_data)
    set_external_data(tensor, path.name, offset, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    return tensor


def remove_unused(graph: onnx.GraphProto, names: Set[str]) -> None:
    """Take away nodes that make only these and that nobody uses any more, and their constants."""
    uses = Counter(name for node in nodes_of(graph) for name in node.input)
    uses.update(value.name for value in graph.output)
    before = set(uses)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if names >= set(node.output) and not any(uses[name] for name in node.output):
            uses.subtract(node.input)
            del graph.node[index]
    for index in reversed(range(len(graph.initializer))):
        name = graph.initializer[index].name
        if name in before and not uses[name]:
            del graph.initializer[index]
