"""The linear layers of a graph: products of activations with a constant matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

SMALLEST = 32
"""Matrices with a side shorter than this stay as they are: nothing is won."""


@dataclass(frozen=True)
class Linear:
    """One product `activations @ weight`, and where its weight lies."""

    node: ir.Node
    activations: ir.Value
    weight: ir.Value
    """The initializer, `[out, in]` if `rows_are_outputs`, else `[in, out]`."""
    rows_are_outputs: bool
    is_head: bool = False
    """Whether logits come of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        rows, columns = (int(size) for size in self.weight.shape.numpy())  # type: ignore[union-attr]
        return (rows, columns) if self.rows_are_outputs else (columns, rows)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Some of the outputs' weights in float32, `[stop - start, in]`; nothing else is read from the file."""
        assert self.weight.const_value is not None
        stored = self.weight.const_value.numpy()
        part = stored[start:stop] if self.rows_are_outputs else stored[:, start:stop].T
        return np.ascontiguousarray(part, np.float32)


def find_linears(model: ir.Model) -> list[Linear]:
    """Every linear layer of the main graph, in its order."""
    heads = _head_nodes(model.graph)
    found = (_linear(node, node in heads) for node in model.graph)
    return [linear for linear in found if linear is not None]


def linear_bytes(linears: list[Linear]) -> int:
    """What their weights take in float32; one matrix counts once."""
    return sum({linear.weight.name: 4 * math.prod(linear.shape) for linear in linears}.values())


def _linear(node: ir.Node, is_head: bool) -> Linear | None:
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    activations, weight = node.inputs[:2]
    if activations is None or weight is None:
        return None
    turned = False
    if node.op_type == "Gemm":
        if _number(node, "alpha", 1.0) != 1.0 or _number(node, "beta", 1.0) != 1.0 or _number(node, "transA", 0):
            return None
        turned = bool(_number(node, "transB", 0))
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        order = producer.attributes["perm"].as_ints() if "perm" in producer.attributes else (1, 0)
        if tuple(order) == (1, 0):
            weight, turned = producer.inputs[0], not turned
    if not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    if min(int(size) for size in weight.shape.numpy()) < SMALLEST:
        return None
    return Linear(node, activations, weight, turned, is_head)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _head_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nearest products before the logits."""
    found, pending = set(), [graph.outputs[0].producer()]
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if _linear(node, True) is not None:
            found.add(node)
        else:
            pending += [value.producer() for value in _activations(node)]
    return found


def _activations(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs on the way back to the head: past what works element by element only."""
    if node.op_type in ("Add", "Mul", "Div", "Tanh", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Sub"):
        yield from (value for value in node.inputs if value is not None)
    elif node.op_type in ("LastToken", "LastTokens", "Gather", "GatherElements", "Transpose", "Clip", "Where", "Slice"):
        yield from (value for value in node.inputs[:1] if value is not None)
