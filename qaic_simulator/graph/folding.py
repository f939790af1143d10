"""What a compiler knows of a graph once its symbols are numbers: sizes, and the values that follow from them.

Values are folded node by node where all inputs are known, by a short list of operators: what only a larger evaluator
could fold must not hide here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import ceil, inf, prod
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

LARGEST = 1 << 20
"""Elements of a value that is worked out; larger ones are known to be constant, and no more."""
NEVER = frozenset({"Loop", "If", "Scan", "Constant", "Identity", "DequantizeLinear"})
"""Operators that are not folded even where all of their inputs are constant."""
ROUNDS = 12

Values = Sequence[np.ndarray]


def _axes(node: onnx.NodeProto, given: Values, place: int = 1) -> tuple[int, ...]:
    if len(given) > place:
        return tuple(int(axis) for axis in given[place].reshape(-1))
    return tuple(attribute(node, "axes", ()))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _slice(node: onnx.NodeProto, given: Values) -> np.ndarray:
    data, starts, ends = given[:3]
    axes = given[3] if len(given) > 3 else np.arange(len(starts))
    steps = given[4] if len(given) > 4 else np.ones(len(starts), np.int64)
    cut: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        lowest = -data.shape[axis] - 1
        cut[int(axis)] = slice(int(start), None if step < 0 and end < lowest else int(end), int(step))
    return np.asarray(data[tuple(cut)])


def _reshape(node: onnx.NodeProto, given: Values) -> np.ndarray:
    data, wanted = given
    keeps = not attribute(node, "allowzero", 0)
    sizes = [data.shape[i] if size == 0 and keeps else int(size) for i, size in enumerate(wanted)]
    return data.reshape(sizes)


def _squeeze(node: onnx.NodeProto, given: Values) -> np.ndarray:
    axes = _axes(node, given)
    return np.squeeze(given[0], axis=axes or None)


def _divide(node: onnx.NodeProto, given: Values) -> np.ndarray:
    value, divisor = given
    if value.dtype.kind == "f":
        return np.asarray(value / divisor)
    _check_divisor(divisor)
    goes_up = (value % divisor != 0) & ((value < 0) != (divisor < 0))  # towards zero, where numpy goes down
    return np.asarray(value // divisor + goes_up).astype(value.dtype)


def _remainder(node: onnx.NodeProto, given: Values) -> np.ndarray:
    _check_divisor(given[1])
    return np.asarray(np.mod(*given))


def _check_divisor(divisor: np.ndarray) -> None:
    """Numbers without a fraction have no infinity that numpy could answer with."""
    if divisor.dtype.kind != "f" and not divisor.all():
        raise ZeroDivisionError("an integer is divided by zero")


def _cast(node: onnx.NodeProto, given: Values) -> np.ndarray:
    return np.asarray(given[0]).astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _constant_of_shape(node: onnx.NodeProto, given: Values) -> np.ndarray:
    value = attribute(node, "value")
    filling = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return np.full(tuple(given[0]), filling[0], filling.dtype)


def _reduce(function: Callable[..., Any]) -> Callable[[onnx.NodeProto, Values], np.ndarray]:
    def reduced(node: onnx.NodeProto, given: Values) -> np.ndarray:
        axes = _axes(node, given)
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return given[0]
        return np.asarray(function(given[0], axis=axes or None, keepdims=bool(attribute(node, "keepdims", 1))))

    return reduced


def _elementwise(function: Callable[..., Any]) -> Callable[[onnx.NodeProto, Values], np.ndarray]:
    return lambda node, given: np.asarray(function(*given))


FOLDED: Mapping[str, Callable[[onnx.NodeProto, Values], np.ndarray]] = {
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _divide,
    "Mod": _remainder,
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Min": lambda node, given: functools.reduce(np.minimum, given),
    "Max": lambda node, given: functools.reduce(np.maximum, given),
    "Equal": _elementwise(np.equal),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "And": _elementwise(np.logical_and),
    "Or": _elementwise(np.logical_or),
    "Not": _elementwise(np.logical_not),
    "Where": _elementwise(np.where),
    "Cast": _cast,
    "Concat": lambda node, given: np.concatenate(given, axis=attribute(node, "axis")),
    "Gather": lambda node, given: np.asarray(np.take(given[0], given[1], axis=attribute(node, "axis", 0))),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": lambda node, given: np.asarray(np.expand_dims(given[0], _axes(node, given))),
    "Reshape": _reshape,
    "Transpose": lambda node, given: np.transpose(given[0], attribute(node, "perm")),
    "Expand": lambda node, given: given[0] * np.ones(tuple(given[1]), given[0].dtype),
    "Tile": lambda node, given: np.tile(given[0], tuple(given[1])),
    "Range": lambda node, given: np.arange(*(value.item() for value in given), dtype=given[0].dtype),
    "ConstantOfShape": _constant_of_shape,
    "NonZero": lambda node, given: np.array(np.nonzero(given[0]), np.int64),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}

_MOVING = frozenset(
    {"Cast", "Concat", "NonZero", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
    | {"ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"}
)
"""Operators that make about as many elements as they are given; others repeat operands until these fit one another."""


def _repeated(*shapes: Sequence[int]) -> int:
    """Elements of operands that are repeated until they fit one another."""
    backwards = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return prod(max(sizes) for sizes in backwards)


def _looked_up(node: onnx.NodeProto, given: Values) -> int:
    data, indices = given
    axis = attribute(node, "axis", 0)
    kept: list[int] = [size for place, size in enumerate(data.shape) if place != axis % data.ndim]
    return int(indices.size) * prod(kept)


_GROWING: Mapping[str, Callable[[onnx.NodeProto, Values], int]] = MappingProxyType(
    {
        "ConstantOfShape": lambda node, given: prod(given[0].tolist()),
        "Expand": lambda node, given: _repeated(given[0].shape, given[1].tolist()),
        "Gather": _looked_up,
        "Range": lambda node, given: ceil((given[1].item() - given[0].item()) / given[2].item()),
        "Tile": lambda node, given: given[0].size * prod(given[1].tolist()),
    }
)
"""Elements of what a node makes, for those whose result may be far larger than what it is made from."""


def _made_size(node: onnx.NodeProto, given: Values) -> int:
    """Elements of what a node makes, or fewer where it makes no more than it was given; nothing is made yet."""
    if node.op_type in _GROWING:
        return _GROWING[node.op_type](node, given)
    return 0 if node.op_type in _MOVING else _repeated(*(value.shape for value in given))


@dataclass
class BoundGraph:
    """A graph whose symbols are numbers."""

    model: onnx.ModelProto
    """Functions inlined, inputs static."""
    shapes: dict[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    constants: dict[str, np.ndarray | None] = field(default_factory=dict)
    """Values that do not depend on an input; None where they are constant, but were not worked out."""

    def sizes(self, name: str) -> np.ndarray | None:
        """As far as they are all known: from the shape, or from the value."""
        value = self.constants.get(name)
        if value is None and not self.is_static(name):
            return None
        return np.array(self.shapes[name] if value is None else value.shape, np.int64)

    def elements(self, name: str) -> float:
        """How many a value has; infinitely many where that is not known."""
        return prod(size for size in self.shapes[name] if isinstance(size, int)) if self.is_static(name) else inf

    def is_static(self, name: str) -> bool:
        shape = self.shapes.get(name)
        return shape is not None and all(isinstance(size, int) for size in shape)


def bind(model: onnx.ModelProto, symbols: Mapping[str, int]) -> BoundGraph:
    """The graph with its symbols replaced and all that follows from them."""
    inlined = inline_local_functions(model)
    for value in inlined.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in symbols:
                size.dim_value = symbols[size.dim_param]
    del inlined.graph.value_info[:]  # what the exporter said is to be found again
    _forget_outputs(inlined)
    bound = BoundGraph(inlined)
    for _ in range(ROUNDS):
        before = len(bound.constants), sum(map(bound.is_static, bound.shapes))
        _fold(bound)
        _infer(bound)
        if (len(bound.constants), sum(map(bound.is_static, bound.shapes))) == before:
            break
    return bound


def _forget_outputs(model: onnx.ModelProto) -> None:
    """Take the shapes of the outputs away, and their types where these follow: an untrue one would stop inference."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.ClearField("type")
    found = {value.name: value.type for value in onnx.shape_inference.infer_shapes(bare).graph.output}
    for value in model.graph.output:
        inferred = found[value.name].tensor_type.elem_type
        if inferred:
            value.type.tensor_type.elem_type = inferred
        value.type.tensor_type.ClearField("shape")


def _infer(bound: BoundGraph) -> None:
    """Sizes, by ONNX's own inference, which is told the small integers that were folded."""
    told = onnx.ModelProto()
    told.CopyFrom(bound.model)
    made = {output for node in told.graph.node for output in node.output}
    known = {n: v for n, v in bound.constants.items() if n in made and v is not None and v.dtype.kind in "iub"}
    kept = [node for node in told.graph.node if not all(output in known for output in node.output if output)]
    del told.graph.node[:]
    told.graph.node.extend(kept)
    told.graph.initializer.extend(numpy_helper.from_array(np.array(v, order="C"), n) for n, v in known.items())
    found = onnx.shape_inference.infer_shapes(told, strict_mode=False, data_prop=not _is_long(bound))
    for value in (*found.graph.input, *found.graph.value_info, *found.graph.output):
        if value.type.tensor_type.HasField("shape"):
            bound.shapes[value.name] = tuple(map(_size, value.type.tensor_type.shape.dim))
    for tensor in found.graph.initializer:
        bound.shapes[tensor.name] = tuple(tensor.dims)


def _is_long(bound: BoundGraph) -> bool:
    """Whether a range may be so long that inference, which keeps its numbers one by one, would take all memory."""
    sizes = [size.dim_value for value in bound.model.graph.input for size in value.type.tensor_type.shape.dim]
    ends = (bound.constants.get(node.input[1]) for node in bound.model.graph.node if node.op_type == "Range")
    return max([*sizes, *(float(np.max(end)) for end in ends if end is not None)], default=0) > LARGEST


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None


def _fold(bound: BoundGraph) -> None:
    for tensor in bound.model.graph.initializer:
        if tensor.name not in bound.constants:
            bound.constants[tensor.name] = _worked_out(tensor)
    for node in bound.model.graph.node:
        if node.output and node.output[0] not in bound.constants:
            _fold_node(bound, node)


def _worked_out(tensor: onnx.TensorProto) -> np.ndarray | None:
    is_small = prod(tensor.dims) <= LARGEST
    is_here = tensor.data_location != onnx.TensorProto.EXTERNAL
    return numpy_helper.to_array(tensor) if is_small and is_here else None


def _value_of(node: onnx.NodeProto) -> np.ndarray | None:
    """Of a `Constant`."""
    (given,) = node.attribute
    value = onnx.helper.get_attribute_value(given)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    kind: type = np.float32 if given.name.startswith("value_float") else np.int64
    return np.array(value, kind) if given.name.startswith(("value_float", "value_int")) else None


def _fold_node(bound: BoundGraph, node: onnx.NodeProto) -> None:
    output = node.output[0]
    if node.op_type == "Constant" and not node.domain:
        bound.constants[output] = _value_of(node)
        return
    if node.op_type in ("Shape", "Size"):
        sizes = bound.sizes(node.input[0])
        if sizes is not None:
            cut = slice(attribute(node, "start", 0), attribute(node, "end"))
            bound.constants[output] = sizes[cut] if node.op_type == "Shape" else _product(sizes)
        return
    names = [name for name in node.input if name]
    if node.domain or node.op_type in NEVER or not names or not all(name in bound.constants for name in names):
        return
    values = [bound.constants[name] for name in names]
    known = [value for value in values if value is not None]
    function = FOLDED.get(node.op_type)
    if function is None or len(known) < len(values):
        bound.constants.update(dict.fromkeys(node.output))
        return
    with np.errstate(all="ignore"):  # what is infinite or no number is looked at where it is used
        folded = function(node, known) if _made_size(node, known) <= LARGEST else None
    bound.constants[output] = folded if folded is not None and folded.size <= LARGEST else None


def _product(sizes: np.ndarray) -> np.ndarray | None:
    """The elements of a tensor, if an integer of 64 bits holds them."""
    product = prod(sizes.tolist())
    return np.array(product, np.int64) if product <= np.iinfo(np.int64).max else None
