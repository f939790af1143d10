"""What values may be: tensors of known, positive sizes."""

from __future__ import annotations

import onnx

from qaic_simulator.graph.binding import Program, scan_body
from qaic_simulator.profiles import Profile

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
    """Refuse values that are no tensors of known, positive sizes."""
    graph = program.bound.model.graph
    for value in (*graph.input, *graph.output):
        _check_size(program, value.name, None)
    for tensor in graph.initializer:
        check_kind(tensor.name, program.types[tensor.name], program.profile)
    _check_made(program)


def _check_made(program: Program) -> None:
    for node in program.nodes:
        for name in filter(None, node.output):
            if name in program.types:
                check_kind(name, program.types[name], program.profile)
            _check_size(program, name, node)
        body = scan_body(program, node) if node.op_type == "Scan" else None
        if body is not None:
            _check_made(body)


def check_kind(name: str, kind: onnx.TypeProto, profile: Profile) -> None:
    """Refuse a value that is no tensor, or one of complex numbers or texts."""
    if kind.WhichOneof("value") in ("sequence_type", "optional_type", "map_type", "sparse_tensor_type"):
        profile.refuse("graph.sequence", f"{name} is no tensor, which is not supported.")
    if kind.tensor_type.elem_type in COMPLEX:
        profile.refuse("graph.complex", f"{name} is complex, which is not supported.")
    if kind.tensor_type.elem_type == _TYPES.STRING:
        profile.refuse("graph.text", f"{name} is text, which is not supported.")


def _check_size(program: Program, name: str, node: onnx.NodeProto | None) -> None:
    if not program.bound.is_static(name):
        shape = program.bound.shapes.get(name, "unknown")
        program.refuse("graph.dynamic", f"Shape of {name} is {shape}: dynamic shapes are not supported.", node)
    elif 0 in program.shape(name) and name not in program.bound.constants:
        text = f"Shape of {name} is {program.shape(name)}: a dimension is zero."
        program.refuse("graph.zero-dimension", text, node)
