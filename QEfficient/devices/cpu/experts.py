"""The experts of a graph's mixtures: products of activations with matrices that each row chooses from a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from QEfficient.devices.cpu.editing import Nodes
from QEfficient.devices.cpu.linear import SMALLEST
from QEfficient.devices.cpu.packing import TILE

View = Callable[[np.ndarray], np.ndarray]
"""Another way of looking at an array's numbers, which copies none of them."""


@dataclass(frozen=True)
class Experts:
    """One product of a matrix that is chosen with activations, or of these with it."""

    node: ir.Node
    activations: ir.Value
    """`[…, rows, in]`; if the matrix comes first, a column `[…, in, 1]`."""
    weight: ir.Value
    """The initializer."""
    choice: ir.Value | None
    """The numbers of the matrices that are chosen; None: every matrix has its place, in order."""
    matrix_first: bool
    view: View
    """Of the initializer's numbers, as the stack `[experts, out, in]`."""

    is_head = False

    @property
    def stack(self) -> np.ndarray:
        """`[experts, out, in]`, in the file's own type."""
        assert self.weight.const_value is not None
        return self.view(self.weight.const_value.numpy())

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)` of all matrices, one below the other."""
        count, outputs, inputs = self.stack.shape
        return count * outputs, inputs

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Some of the outputs' weights in float32, `[stop - start, in]`, of matrices one below the other."""
        stack, parts = self.stack, []
        while start < stop:
            expert, first = divmod(start, stack.shape[1])
            last = min(first + stop - start, stack.shape[1])
            parts.append(np.asarray(stack[expert, first:last], np.float32))
            start += last - first
        return np.ascontiguousarray(np.concatenate(parts))

    def in_order_of_use(self, matrices: np.ndarray) -> np.ndarray:
        """Matrices `[out, in]` as the product takes them."""
        return matrices if self.matrix_first else matrices.swapaxes(-1, -2)

    def product(self, build: Nodes, table: ir.Value, is_narrow: bool = False) -> ir.Value:
        """The product with another table of matrices, in the order of use."""
        chosen = table if self.choice is None else build("Gather", table, self.choice, axis=0)
        if is_narrow:
            chosen = build("Cast", chosen, to=ir.DataType.FLOAT)
        given = (chosen, self.activations) if self.matrix_first else (self.activations, chosen)
        return build("MatMul", *given)


def find_experts(model: ir.Model) -> list[Experts]:
    """Every product with experts of the main graph, in its order."""
    found = (_experts(node) for node in model.graph if not node.domain and node.op_type == "MatMul")
    return [experts for experts in found if experts is not None]


def expert_bytes(experts: Sequence[Experts]) -> int:
    """What they take in float32; one stack counts once."""
    return sum({one.weight.name: 4 * one.stack.size for one in experts}.values())


def chosen_bytes(experts: Sequence[Experts]) -> int:
    """What the largest matrix that can be chosen takes in float32."""
    return max((4 * one.stack[0].size for one in experts if one.choice is not None), default=0)


def most_chosen(model: ir.Model) -> int:
    """How many experts a token has at most."""
    counts = [ir.convenience.get_const_tensor(_input(n, 1)) for n in model.graph if n.op_type == "TopK"]
    return max((int(count.numpy().max()) for count in counts if count is not None), default=1)


def _experts(node: ir.Node) -> Experts | None:
    for place in (0, 1):
        matrix, activations = node.inputs[place], node.inputs[1 - place]
        found = None if matrix is None else _chosen(matrix)
        if found is None or activations is None:
            continue
        if place == 0 and not _is_column(activations):
            continue
        weight, choice, view = found
        experts = Experts(node, activations, weight, choice, place == 0, view if place == 0 else _turned(view))
        outputs, inputs = experts.stack.shape[1:]
        return experts if min(outputs, inputs) >= SMALLEST and outputs % TILE == 0 else None
    return None


def _chosen(matrix: ir.Value) -> tuple[ir.Value, ir.Value | None, View] | None:
    """A stack that a product's input comes from, the choice among its matrices, and how the input looks at them."""
    turned, producer = False, matrix.producer()
    while producer is not None and producer.op_type == "Transpose":
        swaps = _swaps_last_two(producer)
        if swaps is None:
            return None
        turned ^= swaps
        matrix = _input(producer)
        producer = matrix.producer()
    choice = None
    if producer is not None and producer.op_type in ("Gather", "GatherND"):
        choice = _choice(producer)
        if choice is None:
            return None
        matrix = _input(producer)
    found = _stack(matrix)
    if found is None:
        return None
    weight, view = found
    return weight, choice, _turned(view) if turned else view


def _choice(node: ir.Node) -> ir.Value | None:
    """The numbers of matrices that a node gathers."""
    indices = node.inputs[1]
    if indices is None:
        return None
    if node.op_type == "Gather":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return indices if axis == 0 else None
    batch = node.attributes["batch_dims"].as_int() if "batch_dims" in node.attributes else 0
    return None if batch else _without_last_axis(indices)


def _without_last_axis(indices: ir.Value) -> ir.Value | None:
    """Indices `[…, 1]` as `[…]`; None if they are not known to be that."""
    node = indices.producer()
    if node is None or node.op_type != "Unsqueeze" or node.inputs[1] is None:
        return None
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    return node.inputs[0] if axes is not None and axes.numpy().tolist() == [-1] else None


def _stack(value: ir.Value) -> tuple[ir.Value, View] | None:
    """The initializer that a stack of matrices is made of, past nodes that only look at it in another way."""
    views: list[View] = []
    while not value.is_initializer():
        producer = value.producer()
        view = None if producer is None or producer.domain else _view_of(producer)
        if producer is None or view is None:
            return None
        views.insert(0, view)
        value = _input(producer)
    if value.const_value is None or not value.const_value.dtype.is_floating_point():
        return None

    def look(array: np.ndarray) -> np.ndarray:
        for view in views:
            array = view(array)
        return array

    return (value, look) if look(value.const_value.numpy()).ndim == 3 else None


def _turned(view: View) -> View:
    """The same with the last two axes swapped."""
    return lambda array: view(array).swapaxes(-1, -2)


def _view_of(node: ir.Node) -> View | None:
    if node.op_type == "Identity":
        return lambda array: array
    if node.op_type == "Transpose" and "perm" in node.attributes:
        order = tuple(node.attributes["perm"].as_ints())
        return lambda array: array.transpose(order)
    if node.op_type == "Reshape" and node.inputs[1] is not None:
        shape = ir.convenience.get_const_tensor(node.inputs[1])
        if shape is not None and (sizes := shape.numpy().tolist()) and 0 not in sizes:
            return lambda array: array.reshape(sizes)
    return None


def _swaps_last_two(node: ir.Node) -> bool | None:
    """Whether a transposition swaps the last two axes (or does nothing); None if it does anything else."""
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []
    same = list(range(len(order)))
    if order == same:
        return False if order else None
    return True if order == [*same[:-2], same[-1], same[-2]] else None


def _is_column(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) > 1 and value.shape[-1] == 1


def _input(node: ir.Node, place: int = 0) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value
