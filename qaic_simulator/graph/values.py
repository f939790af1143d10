"""What values may be: their types, their sizes, and what constants may hold where they become fp16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from qaic_simulator.graph.binding import Program, scan_body
from qaic_simulator.graph.file import external_place, nodes_within, tensors_of
from qaic_simulator.profiles import Profile

HALF_MAX = 65504.0
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
CHUNK = 1 << 24
"""Elements of external data that are looked at together."""

_TYPES = onnx.TensorProto
COMPLEX = (_TYPES.COMPLEX64, _TYPES.COMPLEX128)
TYPE_NUMBERS: dict[int, int] = {
    _TYPES.FLOAT: 0,
    _TYPES.FLOAT16: 1,
    _TYPES.INT8: 8,
    _TYPES.BOOL: 8,
    _TYPES.UINT8: 3,
    _TYPES.INT16: 4,
    _TYPES.INT32: 6,
    _TYPES.INT64: 7,
    _TYPES.BFLOAT16: 11,
}
"""The runtime's buffer types by the types of inputs and outputs; that of bfloat16 is a guess of public code."""


def check_values(program: Program) -> None:
    """Refuse values that are no tensors of known, positive sizes, and inputs and outputs of strange types."""
    graph = program.bound.model.graph
    for value in (*graph.input, *graph.output):
        if not _has_type(value.type):
            program.refuse("graph.malformed", f"{value.name} has no type.")
        _check_type(program, value.name)
        kind = program.element_type(value.name)
        if program.types[value.name].WhichOneof("value") == "tensor_type" and kind not in TYPE_NUMBERS:
            text = f"{value.name} has type {_TYPES.DataType.Name(kind)}, which no device buffer has."
            program.refuse("graph.io-type", text)
        _check_size(program, value.name, None)
    _check_made(program)


def _check_made(program: Program) -> None:
    for node in program.nodes:
        for name in filter(None, node.output):
            _check_type(program, name)
            _check_size(program, name, node)
        body = scan_body(program, node) if node.op_type == "Scan" else None
        if body is not None:
            _check_made(body)


def _has_type(kind: onnx.TypeProto) -> bool:
    found = kind.WhichOneof("value")
    return found is not None and (found != "tensor_type" or kind.tensor_type.elem_type != _TYPES.UNDEFINED)


def _check_type(program: Program, name: str) -> None:
    kind = program.types[name].WhichOneof("value") if name in program.types else "tensor_type"
    if kind in ("sequence_type", "optional_type", "map_type", "sparse_tensor_type"):
        program.refuse("graph.sequence", f"{name} is no tensor, which is not supported.")
    if program.element_type(name) in COMPLEX:
        program.refuse("graph.complex", f"{name} is complex, which is not supported.")


def _check_size(program: Program, name: str, node: onnx.NodeProto | None) -> None:
    if not program.bound.is_static(name):
        shape = program.bound.shapes.get(name, "unknown")
        program.refuse("graph.dynamic", f"Shape of {name} is {shape}: dynamic shapes are not supported.", node)
    elif 0 in program.shape(name) and name not in program.bound.constants:
        text = f"Shape of {name} is {program.shape(name)}: a dimension is zero."
        program.refuse("graph.zero-dimension", text, node)


def check_constants(program: Program, folder: Path) -> None:
    """Refuse constants that fp16, or an integer of 32 bits, cannot hold."""
    bounds, profile = _only_bounds(program), program.profile
    for name, values in _constants(program.bound.model, folder):
        if values.dtype.kind == "i":
            if values.dtype.itemsize == 8 and name not in bounds:
                _check_integers(name, values, profile)
        else:
            _check_floats(name, values.astype(np.float64), profile)


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
    """Floats and signed integers by name, the large ones piece by piece."""
    for node in nodes_within(model.graph.node):
        if node.op_type == "Constant" and not node.domain:
            yield from ((node.output[0], value) for value in _values_of(node))
        elif node.op_type == "ConstantOfShape":
            yield from ((node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value")
    tensors = [*model.graph.initializer, *(tensor for tensor in tensors_of(model) if tensor.name)]
    for tensor in {tensor.name: tensor for tensor in tensors}.values():
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if kind.kind in "fi" or tensor.data_type == _TYPES.BFLOAT16:
            yield from ((tensor.name, piece) for piece in _pieces(tensor, kind, folder))


def _values_of(node: onnx.NodeProto) -> Iterator[np.ndarray]:
    """Of a Constant; its numbers as they are written, which are of 32 bits and of 64."""
    for given in node.attribute:
        if given.type == onnx.AttributeProto.TENSOR:
            value = numpy_helper.to_array(given.t)
            if value.dtype.kind in "fi":
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
