"""How much memory of a device a program needs, roughly: enough to refuse what is clearly too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType

import onnx

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.interface import own_inputs
from qaic_simulator.side_files.custom_io import input_of_state

GIBIBYTE = 2**30
CAPACITY: Mapping[str, int] = MappingProxyType({"standard": 14, "pro": 30, "ultra": 30})
"""GiB of one device that programs may use, by card; the Standard card has 16 GB, the others 32 per device."""
HALF_BYTES = 2.0
MICROSCALED_BYTES = 6.25 / 8
"""Bytes of an element in MXFP6, its share of the block's scale included."""
STATE_BYTES: Mapping[str, float] = MappingProxyType({"mxint8": 8.25 / 8, "int8": 1.0, "float": 4.0})
SPARE = 1.1
"""For what else is in memory: code, descriptors, tensors between operators."""


def check_memory(
    programs: Sequence[Program], arguments: Arguments, precisions: Mapping[str, str], devices: int
) -> None:
    """Refuse a program that no device of the card can hold, its tensors sliced over so many devices."""
    weights = weight_bytes(programs[0], arguments.has("mxfp6-matmul"))
    needed = SPARE * (weights + max(interface_bytes(program, precisions) for program in programs)) / devices
    capacity = CAPACITY[programs[0].profile.sku]
    if needed > capacity * GIBIBYTE:
        text = f"About {needed / GIBIBYTE:.1f} GiB are needed on each of {devices} devices, which have {capacity}."
        programs[0].refuse("graph.memory", f"Memory resource exhausted: {text}")


def weight_bytes(program: Program, compresses: bool) -> float:
    """Bytes of all constants: two for an element, less where a matrix is compressed."""
    matrices = _matrices(program) if compresses else set()
    return sum(
        float(prod(tensor.dims)) * (MICROSCALED_BYTES if tensor.name in matrices else HALF_BYTES)
        for tensor in program.bound.model.graph.initializer
    )


def _matrices(program: Program) -> set[str]:
    """What the second operands of multiplications are, or are the transposes of."""
    turned = {node.output[0]: node.input[0] for node in program.nodes if node.op_type == "Transpose"}
    operands = {node.input[1] for node in program.nodes if node.op_type in ("MatMul", "Gemm")}
    return operands | {turned[name] for name in operands & set(turned)}


def interface_bytes(program: Program, precisions: Mapping[str, str]) -> float:
    """Bytes of inputs and outputs; a retained state is there once."""
    graph = program.bound.model.graph
    names = [value.name for value in (*own_inputs(graph), *graph.output) if not input_of_state(value.name)]
    return sum(prod(program.shape(name)) * _element_bytes(program, name, precisions) for name in names)


def _element_bytes(program: Program, name: str, precisions: Mapping[str, str]) -> float:
    if name in precisions:
        return STATE_BYTES.get(precisions[name], HALF_BYTES)
    return float(onnx.helper.tensor_dtype_to_np_dtype(program.element_type(name)).itemsize)
