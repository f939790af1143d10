"""Constant factors of products of matrices, which MXFP6 rounds: which they are, and products that read others instead.

A constant counts also behind a transposition or a choice from a bank of matrices, and in bodies of control flow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from QEfficient.devices.cloud_ai_100.numerics.flat import bodies, constant_of

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)

Made = onnx.NodeProto | onnx.TensorProto | None
"""What a name stands for: a node's output, a constant, or what a graph is given."""
Scope = Mapping[str, Made]
"""All names that can be read in a graph or in a body."""


@dataclass(frozen=True)
class Matrix:
    """A constant behind a factor of a product."""

    tensor: onnx.TensorProto
    axis: int
    """The one that is summed along, counted from the end."""
    path: tuple[onnx.NodeProto, ...]
    """The nodes between: transpositions, and choices from a bank."""


class Products:
    """Rewrites nodes of a graph, so that products read new tensors in place of their constant factors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._scope = _made_in(graph)
        self.taken: dict[str, Matrix] = {}
        """By the name of the new tensor, what it is to be made from."""
        self.left: set[str] = set()
        """Outputs of nodes that products read no more."""

    def rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """A copy of a node, behind the nodes that are between it and new tensors; its bodies are rewritten too."""
        return self._rewritten(node, self._scope)

    def _rewritten(self, node: onnx.NodeProto, scope: Scope) -> list[onnx.NodeProto]:
        own, between = copied(node), list[onnx.NodeProto]()
        for place, axis in enumerate(_summed_axes(node)):
            matrix = _find(node.input[place], axis, scope)
            if matrix is not None:
                between += self._path(matrix, f"~{node.output[0]}~{place}")
                own.input[place] = between[-1].output[0] if matrix.path else self._name(matrix)
        for body in bodies(own):
            inside = {**scope, **_made_in(body)}
            nodes = [new for inner in body.node for new in self._rewritten(inner, inside)]
            del body.node[:]
            body.node.extend(nodes)
        return [*between, own]

    def _path(self, matrix: Matrix, suffix: str) -> Iterator[onnx.NodeProto]:
        """The nodes between, from the new tensor on."""
        name = self._name(matrix)
        for step in matrix.path:
            self.left.update(step.output)
            own = copied(step)
            own.input[0], own.output[0] = name, step.output[0] + suffix
            name = own.output[0]
            yield own

    def _name(self, matrix: Matrix) -> str:
        name = f"{matrix.tensor.name}~mxfp6{matrix.axis}"
        while name in self.taken and self.taken[name].tensor is not matrix.tensor:
            name += "~"  # bodies may have constants of the same name
        self.taken.setdefault(name, matrix)
        return name


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node like another, without a name: two may not have the same."""
    own = copy.deepcopy(node)
    own.ClearField("name")
    return own


def _made_in(graph: onnx.GraphProto) -> dict[str, Made]:
    made: dict[str, Made] = dict.fromkeys(value.name for value in graph.input)
    made |= {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constant_of(node)
        made |= dict.fromkeys(node.output, node if tensor is None else _named(tensor, node.output[0]))
    return made


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    own = copy.deepcopy(tensor)
    own.name = name
    return own


def _summed_axes(node: onnx.NodeProto) -> tuple[int, ...]:
    """The axis that each of the two factors of a product is summed along, counted from the end."""
    if node.op_type == "MatMul":
        return -1, -2
    if node.op_type == "Gemm":
        turned = {attribute.name: attribute.i for attribute in node.attribute}
        return -2 if turned.get("transA") else -1, -1 if turned.get("transB") else -2
    return ()


def _find(name: str, axis: int, scope: Scope) -> Matrix | None:
    """The constant behind a factor that is summed along `axis`; None where there is none, or no matrix."""
    path: list[onnx.NodeProto] = []
    made = scope.get(name)
    while isinstance(made, onnx.NodeProto):
        step = made
        if not _leads_on(step):
            return None
        made = scope.get(step.input[0])
        if step.op_type == "Transpose":
            order = _order(step, made)
            axis = order[axis] - len(order)
        path.insert(0, step)
    if made is None or made.data_type not in FLOATS:
        return None
    # What a bank chooses along is its first axis, which no product sums along.
    is_bank = any(step.op_type == "Gather" for step in path)
    enough = max(3, 1 - axis) if is_bank else max(2, -axis)
    return Matrix(made, axis, tuple(path)) if len(made.dims) >= enough else None


def _leads_on(node: onnx.NodeProto) -> bool:
    """Whether a node only turns a matrix, or chooses along the first axis of a bank of them."""
    chosen = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type in ("Transpose", "Identity") or (node.op_type == "Gather" and chosen == 0)


def _order(node: onnx.NodeProto, made: Made) -> Sequence[int]:
    """Which axis of its input each axis of a transposition's output is."""
    found = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    dimensions = len(made.dims) if isinstance(made, onnx.TensorProto) else 2
    return found or list(reversed(range(dimensions)))
