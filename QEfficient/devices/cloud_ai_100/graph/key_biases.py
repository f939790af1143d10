"""Biases that a key's position alone decides, measured from the query's position: far into a text they are small again.

What is added to attention scores for each key, such as a slope times its position, grows with the text. In float16
numbers beyond 2,048 are even, biases and the scores that they are added to, while neighbours differ by parts of one. A
softmax along the keys gives the same for scores that are all shifted alike, so a bias `b[key]` may be
`b[key] - b[query]`, whatever `b` is: 0 at the query itself, and coarse only where the difference is large.

The numbers of `b` are computed here, in float32 if the graph does so, as a table. What float16 loses is a second
table, and the differences of both are taken on the card before they are added: near keys exactly, others to the
precision that float16 has for the difference itself. A tensor is such a bias if

1. it is made from constants and sizes that all specializations share, with one number for each head and slot of a row,
   the same ones but for a shift however many of the slots are read;
2. it is added to, or masked with, a tensor of heads, queries and slots;
3. all that is made from the result, up to softmaxes along the slots, is indifferent to a constant added to a row.

Everything behind the sum has the shape that it had. The nodes that made the bias are gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from QEfficient.devices.cloud_ai_100.graph.half_range import LARGEST
from QEfficient.devices.cloud_ai_100.graph.key_differences import Bias, insert_differences
from QEfficient.devices.cloud_ai_100.graph.position_tables import CONTEXT, TOLERANCE, used_by
from QEfficient.devices.cloud_ai_100.graph.positional_part import FLOATS, POSITIONS, PositionalPart, Symbols
from QEfficient.devices.cloud_ai_100.graph.table_lookups import remove_unused
from QEfficient.program import COMPUTE_CONTEXT

TRIAL = (3, 5)
"""Rows and tokens of a row, to see how tensors are laid out."""
ADDING = ("Add", "Sub", "Where")
KEEPING = ("Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators behind which rows are the same rows, shifted alike, as long as their length stays."""
HIDING = -(2.0**15)
"""What stands for a score that must not be seen is at most this,"""
WIDEST = 2.0**14
"""where a bias spans no more than this: with and without a shift, what is hidden has no part in a softmax."""

Shape = tuple[int, ...]
logger = logging.getLogger(__name__)


def center_key_biases(model: onnx.ModelProto, folder: Path, symbols: Symbols) -> bool:
    """Measure them all from the query's position, in place; whether there were any. `folder` has the model's external
    data, `symbols` are the sizes that all specializations share."""
    if not any(node.op_type == "Softmax" for node in model.graph.node):
        return False
    slots = symbols.get(CONTEXT, 1)
    part = PositionalPart(model, folder, {**symbols, COMPUTE_CONTEXT: slots})
    if part.row_symbols is None or slots == 1:
        return False
    biases = list(_Search(model, part).biases())
    if biases:
        insert_differences(model.graph, biases, slots)
        remove_unused(model.graph, part.producers.keys())
    return bool(biases)


class _Search:
    """The biases of a graph."""

    def __init__(self, model: onnx.ModelProto, part: PositionalPart) -> None:
        self._graph, self._part = model.graph, part
        self._still = _independent_of_positions(part)
        shapes = _shapes(model, part, self._still)
        self._shapes = {name: shape for name, shape in shapes.items() if min(shape, default=0) >= 0}
        self._lengths = {name: shape[-1] if shape else 1 for name, shape in shapes.items()}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in used_by(node):
                self._readers.setdefault(name, []).append(node)
        self._values: dict[str, np.ndarray | None] = {}

    def biases(self) -> Iterator[Bias]:
        """Operands that are some, of nodes that are none."""
        for node in self._graph.node:
            if node.op_type in ADDING and not node.domain and node.output[0] not in self._still:
                for place, name in enumerate(node.input):
                    bias = self._bias(node, place) if name in self._still else None
                    if bias is not None and self._passes(node, name):
                        yield bias

    def _bias(self, node: onnx.NodeProto, place: int) -> Bias | None:
        """What an operand would be, if nothing but its shape and its numbers decided."""
        (rows, tokens), slots = TRIAL, self._part.symbols[CONTEXT]
        own, whole = self._shapes.get(node.input[place], ()), self._shapes.get(node.output[0], ())
        is_flat = len(whole) == 3
        is_of_rows = whole[:1] == (rows,) if len(whole) == 4 else is_flat and whole[0] % rows == 0
        if not is_of_rows or whole[-2:] != (tokens, slots) or own[-1:] != (slots,) or own[-2:-1] not in ((), (1,)):
            return None
        given = self._value(node.input[place])
        if given is None or given.dtype.kind != "f":
            return None
        values = self._unrounded(node.input[place], given)
        by_row = np.broadcast_to(values, (*whole[:-2], 1, slots)).reshape(rows, -1, slots)
        is_one_for_all, is_constant = (by_row == by_row[:1]).all(), (by_row == by_row[..., :1]).all()
        if not is_one_for_all or is_constant or not _fits(by_row) or not self._lasts(node.input[place], given):
            return None
        return Bias(node, place, by_row[0], given.dtype, is_flat)

    def _unrounded(self, name: str, given: np.ndarray) -> np.ndarray:
        """The values of a tensor; where the graph has rounded them from float32 to float16, as they were before."""
        maker = self._part.producers[name]
        found = self._value(maker.input[0]) if maker.op_type == "Cast" and given.dtype == np.float16 else None
        return found if found is not None and found.dtype == np.float32 else given

    def _lasts(self, name: str, values: np.ndarray) -> bool:
        """Whether the numbers of fewer slots are those of the first ones of all, but for a shift."""
        fewer = max(2, values.shape[-1] // 3)
        found = self._computed(name, {**self._part.symbols, COMPUTE_CONTEXT: fewer})
        if found is None or (found.shape == values.shape and (found == values).all()):
            return found is not None
        kept = values[..., :fewer]
        if found.shape != kept.shape:
            return False
        differences = (found - found[..., :1]) - (kept - kept[..., :1])
        return bool(np.abs(differences).max() <= TOLERANCE * np.abs(values).max())

    def _value(self, name: str) -> np.ndarray | None:
        """Of a tensor that follows from constants and sizes."""
        if name not in self._values:
            self._values[name] = self._computed(name, self._part.symbols)
        return self._values[name]

    def _computed(self, name: str, symbols: Symbols) -> np.ndarray | None:
        try:
            return self._part.evaluate([name], np.zeros(TRIAL, np.int64), symbols)[name]
        except Exception as error:  # ONNX Runtime's exceptions have no common class below this one
            logger.info("%s is not looked at: it cannot be computed: %s", name, error)
            return None

    # what a constant added to a row passes through

    def _passes(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether no result of the graph depends on a constant that is added to a row of an operand."""
        if node.domain:
            return False
        if node.op_type == "Softmax":
            return _attribute(node, "axis", -1) in (-1, len(self._shapes[name]) - 1)
        result = node.output[0]
        if not self._keeps_rows(node, name) or result in self._outputs:
            return False
        readers = self._readers.get(result, [])
        return bool(readers) and all(self._passes(reader, result) for reader in readers)

    def _keeps_rows(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether the result's rows are the operand's rows, and shifted alike where these are."""
        before, after = self._shapes.get(name, ()), self._shapes.get(node.output[0], ())
        if not before or not after or before[-1] != after[-1]:
            return False
        if node.op_type in ("Add", "Sub"):
            # A number of its own for each row: the graph itself measures from somewhere, and would do so twice.
            return all(self._lengths.get(other) != 1 for other in node.input)
        if node.op_type in ("Mul", "Div"):
            others = [other for other in node.input if other != name]
            is_factor = node.op_type == "Mul" or node.input[0] == name
            return is_factor and len(others) == 1 and self._lengths.get(others[0]) == 1
        if node.op_type == "Where":
            return node.input[0] != name and all(self._hides(other) for other in node.input[1:] if other != name)
        if node.op_type == "Transpose":
            return bool(_attribute(node, "perm", [0])[-1] == len(before) - 1)
        is_float = node.op_type == "Cast" and _attribute(node, "to", 0) in FLOATS
        return is_float or node.op_type in KEEPING

    def _hides(self, name: str) -> bool:
        """Whether nothing that has these numbers for a score has a part in a softmax."""
        values = self._constants.get(name) if name not in self._still else self._value(name)
        return values is not None and values.dtype.kind == "f" and bool((values <= HIDING).all())

    @cached_property
    def _constants(self) -> Mapping[str, np.ndarray]:
        """Those that stand in the graph itself."""
        own = (t for t in self._graph.initializer if t.data_location != TensorProto.EXTERNAL)
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in own}

    @cached_property
    def _outputs(self) -> frozenset[str]:
        return frozenset(value.name for value in self._graph.output)


def _fits(values: np.ndarray) -> bool:
    """Whether differences are numbers that hide nothing, and tables within float16."""
    limits = values.min().astype(np.float64), values.max().astype(np.float64)
    return bool(np.abs(limits).max() <= LARGEST and limits[1] - limits[0] <= WIDEST)


def _independent_of_positions(part: PositionalPart) -> set[str]:
    """Tensors that sizes and constants decide. How many positions there are is a size."""
    moving = {POSITIONS}
    for name, node in part.producers.items():
        is_size = node.op_type == "Shape" and node.input[0] == POSITIONS
        if not is_size and not moving.isdisjoint(node.input):
            moving.add(name)
    return part.producers.keys() - moving


def _shapes(model: onnx.ModelProto, part: PositionalPart, still: set[str]) -> dict[str, Shape]:
    """The shapes of all tensors, for rows and tokens as in the trial; -1 for what cannot be told."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    sizes = {**part.symbols, **dict(zip(part.row_symbols or (), TRIAL, strict=False))}
    for value in bound.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in sizes:
                size.dim_value = sizes[size.dim_param]
    del bound.graph.value_info[:]
    values = _integers(bound, part, still)
    nodes = [node for node in bound.graph.node if values.keys().isdisjoint(node.output)]
    tensors = {name: numpy_helper.from_array(value) for name, value in values.items()}
    known = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in tensors.items()]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*known, *nodes)]
    del bound.graph.node[:]
    bound.graph.node.extend(kept)
    found = {tensor.name: tuple(tensor.dims) for tensor in bound.graph.initializer}
    for name, kind in _described(shape_inference.infer_shapes(bound)).items():
        if kind.HasField("shape"):
            found[name] = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
    return found


def _integers(model: onnx.ModelProto, part: PositionalPart, still: set[str]) -> dict[str, np.ndarray]:
    """The values of integers that sizes and constants decide: other shapes follow from them."""
    described = _described(shape_inference.infer_shapes(model))
    names = [name for name in still & described.keys() if described[name].elem_type == TensorProto.INT64]
    try:
        return part.evaluate(sorted(names), np.zeros(TRIAL, np.int64), part.symbols) if names else {}
    except Exception as error:  # ONNX Runtime's exceptions have no common class below this one
        logger.info("Shapes are not known, so no bias can be found: %s", error)
        return {}


def _described(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    graph = model.graph
    return {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}


def _attribute(node: onnx.NodeProto, name: str, usual: Any) -> Any:
    found = next((given for given in node.attribute if given.name == name), None)
    return usual if found is None else helper.get_attribute_value(found)
