"""What constants may hold where they become fp16, or integers of 32 bits: those of the file, and what they become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from qaic_simulator.graph.binding import Program, scan_body
from qaic_simulator.graph.evaluation import evaluated
from qaic_simulator.graph.file import external_place, nodes_within, tensors_of
from qaic_simulator.graph.folding import attribute
from qaic_simulator.profiles import Profile

HALF_MAX = 65504.0
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
CHUNK = 1 << 24
"""Elements of external data that are looked at together."""

_TYPES = onnx.TensorProto
FLOATS = (_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.DOUBLE)
COMPARING = ("Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual")
"""Operators that only ask how numbers compare."""


def check_constants(program: Program, folder: Path) -> None:
    """Refuse constants that fp16, or an integer of 32 bits, cannot hold."""
    bounds, profile = _only_bounds(program), program.profile
    for name, values in _constants(program.bound.model, folder):
        if values.dtype.kind in "iu":
            if values.dtype.itemsize == 8 and name not in bounds:
                _check_integers(name, values, profile)
        else:
            _check_floats(name, values.astype(np.float64), profile)


def check_folded(program: Program) -> None:
    """Refuse what constants become, where the card cannot hold it and something is computed with it in each run."""
    outputs = [value.name for value in program.bound.model.graph.output]
    used = [name for node in program.nodes if not program.is_folded(node) for name in _computed_with(node)]
    values = evaluated(program)
    for name in dict.fromkeys([*used, *outputs]):
        if name in values and values[name].dtype.kind == "f":
            _check_floats(name, values[name].astype(np.float64), program.profile)
    counted = [name for node in program.nodes if not program.is_folded(node) for name in _counted_with(node)]
    for name in dict.fromkeys([*counted, *outputs]):
        if name in values and values[name].dtype.kind in "iu" and values[name].dtype.itemsize == 8:
            _check_integers(name, values[name], program.profile)
    for node in program.nodes:
        body = scan_body(program, node) if node.op_type == "Scan" else None
        if body is not None:
            check_folded(body)


def _computed_with(node: onnx.NodeProto) -> list[str]:
    """The operands whose numbers are in the result, and not only which of two is larger."""
    is_integer = node.op_type == "Cast" and attribute(node, "to") not in FLOATS
    return [] if is_integer or node.op_type in COMPARING else [name for name in node.input if name]


def _counted_with(node: onnx.NodeProto) -> list[str]:
    """The operands that are more than the bounds of a Slice, which cuts them to the size that it slices."""
    return [name for name in (node.input[:1] if node.op_type == "Slice" else node.input) if name]


def _check_integers(name: str, values: np.ndarray, profile: Profile) -> None:
    if values.size and not INT32_MIN <= values.min() <= values.max() <= INT32_MAX:
        text = f"Constant {name} has {values.min()} to {values.max()}, beyond 32 bits."
        profile.refuse("constants.int64-range", text)


def _check_floats(name: str, values: np.ndarray, profile: Profile) -> None:
    if np.isnan(values).any():
        profile.refuse("constants.not-a-number", f"Constant {name} has NaN.")
    beyond = values[(np.abs(values) > HALF_MAX) & (values != -np.inf)]
    if beyond.size:
        text = f"Constant {name} has {beyond[0]:g}, beyond the +-{HALF_MAX:g} of fp16."
        profile.refuse("constants.half-range", text)


def _only_bounds(program: Program) -> set[str]:
    """Names that nothing but a Slice uses, which cuts them to the size that it slices."""
    uses = [
        (name, node.op_type == "Slice" and place > 0)
        for node in nodes_within(program.nodes)
        for place, name in enumerate(node.input)
    ]
    return {name for name, is_bound in uses if is_bound} - {name for name, is_bound in uses if not is_bound}


def _constants(model: onnx.ModelProto, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Floats and integers by name, the large ones piece by piece."""
    for node in nodes_within(model.graph.node):
        if node.op_type == "Constant" and not node.domain:
            yield from ((node.output[0], value) for value in _values_of(node))
        elif node.op_type == "ConstantOfShape":
            yield from ((node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value")
    tensors = [*model.graph.initializer, *(tensor for tensor in tensors_of(model) if tensor.name)]
    for tensor in {tensor.name: tensor for tensor in tensors}.values():
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if kind.kind in "fiu" or tensor.data_type == _TYPES.BFLOAT16:
            yield from ((tensor.name, piece) for piece in _pieces(tensor, kind, folder))


def _values_of(node: onnx.NodeProto) -> Iterator[np.ndarray]:
    """Of a Constant; its numbers as they are written, which are of 32 bits and of 64."""
    for given in node.attribute:
        if given.type == onnx.AttributeProto.TENSOR:
            value = numpy_helper.to_array(given.t)
            if value.dtype.kind in "fiu":
                yield value
        elif given.name.startswith(("value_float", "value_int")):
            kind = np.float32 if given.name.startswith("value_float") else np.int64
            yield np.array(onnx.helper.get_attribute_value(given), kind)


def _pieces(tensor: onnx.TensorProto, kind: np.dtype, folder: Path) -> Iterator[np.ndarray]:
    if not external_data_helper.uses_external_data(tensor):
        yield numpy_helper.to_array(tensor)
        return
    path, offset, length = external_place(tensor, folder)
    for start in range(0, length // kind.itemsize, CHUNK):
        count = min(CHUNK, length // kind.itemsize - start)
        yield np.fromfile(path, kind, count, offset=offset + start * kind.itemsize)
