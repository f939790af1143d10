"""Small edits of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Nodes:
    """Makes nodes before a given one; each call returns the node's first output."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph, self._before = graph, before

    def __call__(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        return self.several(1, operator, *inputs, domain=domain, **attributes)[0]

    def several(
        self, count: int, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: object
    ) -> Sequence[ir.Value]:
        """A node with `count` outputs; returns all of them."""
        given: Any = attributes or None
        node = ir.node(operator, list(inputs), given, domain=domain, num_outputs=count)
        self._graph.insert_before(self._before, node)
        return node.outputs

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """The same operator on other inputs; returns its outputs."""
        attributes = list(node.attributes.values())
        twin = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs))
        self._graph.insert_before(self._before, twin)
        return twin.outputs

    def constant(self, value: object, dtype: type = np.int64) -> ir.Value:
        return self("Constant", value=ir.tensor(np.array(value, dtype=dtype)))

    def column(self, value: ir.Value) -> ir.Value:
        """`[rows, 1]` → `[rows]`."""
        return self("Squeeze", value, self.constant([1]))

    def merge_heads(self, value: ir.Value) -> ir.Value:
        """`[1, heads, tokens, size]` → `[tokens, heads * size]`."""
        turned = self("Transpose", value, perm=[0, 2, 1, 3])
        row = self("Reshape", turned, self.constant([0, 0, -1]))
        return self("Squeeze", row, self.constant([0]))

    def split_heads(self, value: ir.Value, size: int) -> ir.Value:
        """The reverse."""
        row = self("Unsqueeze", value, self.constant([0]))
        split = self("Reshape", row, self.constant([0, 0, -1, size]))
        return self("Transpose", split, perm=[0, 2, 1, 3])

    def lay_out(self, value: ir.Value, cells: ir.Value) -> ir.Value:
        """`[1, tokens, …]` → `[rows, length, …]`, by the token of each cell."""
        return self("Squeeze", self("Gather", value, cells, axis=1), self.constant([0]))

    def pack(self, value: ir.Value, tokens: ir.Value) -> ir.Value:
        """The reverse, by the cell of each token."""
        tail = self("Shape", value, start=2)
        flat = self("Reshape", value, self("Concat", self.constant([-1]), tail, axis=0))
        return self("Unsqueeze", self("Gather", flat, tokens, axis=0), self.constant([0]))

    def lay_out_heads(self, value: ir.Value, cells: ir.Value) -> ir.Value:
        """`[1, heads, tokens, size]` → `[rows, heads, length, size]`."""
        turned = self.lay_out(self("Transpose", value, perm=[0, 2, 1, 3]), cells)
        return self("Transpose", turned, perm=[0, 2, 1, 3])

    def pack_heads(self, value: ir.Value, tokens: ir.Value) -> ir.Value:
        """The reverse."""
        packed = self.pack(self("Transpose", value, perm=[0, 2, 1, 3]), tokens)
        return self("Transpose", packed, perm=[0, 2, 1, 3])


def replace_output(node: ir.Node, output: ir.Value) -> None:
    """Let everything that reads the node's first output read `output`."""
    old = node.outputs[0]
    output.type, output.shape = old.type, None
    if old.is_graph_output():
        output.name, old.name = old.name, f"{old.name}.replaced"
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)


def remove_unused(graph: ir.Graph) -> None:
    """Drop nodes and initializers that nothing reads."""
    outputs = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        if not any(value.uses() or id(value) in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
