"""What a graph says of its own inputs and outputs: whether a device can have such values, and whether it is true."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.interface import sizes_of
from qaic_simulator.graph.values import TYPE_NUMBERS, check_kind
from qaic_simulator.profiles import Profile

_TYPES = onnx.TensorProto


def check_declared(graph: onnx.GraphProto, profile: Profile) -> None:
    """Refuse a graph that makes nothing, and inputs and outputs that are no tensors of a device's types.

    Before anything is inferred from these: where one is wrong, what follows would be refused for another reason.
    """
    if not graph.output:
        profile.refuse("graph.malformed", "The graph has no outputs.")
    for value in (*graph.input, *graph.output):
        _check_type(value, profile)
    for value in graph.input:
        if not value.type.tensor_type.HasField("shape"):
            profile.refuse("graph.dynamic", f"Shape of {value.name} is unknown: dynamic shapes are not supported.")


def _check_type(value: onnx.ValueInfoProto, profile: Profile) -> None:
    check_kind(value.name, value.type, profile)
    kind = value.type.tensor_type.elem_type
    if kind == _TYPES.UNDEFINED:
        profile.refuse("graph.malformed", f"{value.name} has no type.")
    elif kind not in TYPE_NUMBERS:
        text = f"{value.name} has type {_TYPES.DataType.Name(kind)}, which no device buffer has."
        profile.refuse("graph.io-type", text)


def check_results(program: Program, graph: onnx.GraphProto, symbols: Mapping[str, int]) -> None:
    """Refuse outputs and inner values of which the graph says another type or another shape than its nodes make."""
    for value in (*graph.output, *graph.value_info):
        said, made = value.type.tensor_type.elem_type, program.element_type(value.name)
        if said and made and said != made:
            names = [_TYPES.DataType.Name(kind) for kind in (said, made)]
            program.refuse("graph.declared", f"{value.name} is said to be {names[0]}, but is {names[1]}.")
        if value.type.tensor_type.HasField("shape") and program.bound.is_static(value.name):
            _check_shape(value, program, symbols)


def _check_shape(value: onnx.ValueInfoProto, program: Program, symbols: Mapping[str, int]) -> None:
    said = [size if isinstance(size, int) else symbols.get(size) for size in sizes_of(value)]
    made = program.shape(value.name)
    if len(said) != len(made) or any(size not in (None, found) for size, found in zip(said, made, strict=True)):
        text = f"{value.name} is said to have shape {tuple(sizes_of(value))}, but has {made}."
        program.refuse("graph.declared", text)
