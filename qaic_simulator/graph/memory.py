"""How much memory of a device a program needs, roughly: enough to refuse what is clearly too large."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType

import onnx

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.graph.binding import Program
from qaic_simulator.graph.interface import own_inputs, sizes_of
from qaic_simulator.profiles import Profile
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
WINDOW = int(3.9 * GIBIBYTE)
"""Bytes of addresses that a core maps at once."""


@dataclass(frozen=True)
class Share:
    """What one partition has to hold."""

    name: str
    devices: int
    values: Collection[str] = ()
    """What its own nodes read and make, where it says which these are."""


def check_memory(
    programs: Sequence[Program], arguments: Arguments, precisions: Mapping[str, str], shares: Sequence[Share]
) -> int:
    """Refuse a program of which some partition has more than its devices can hold, its tensors sliced over them.

    Returns the bytes of the fullest device that are known: constants, states, inputs and outputs.
    """
    weights = weight_bytes(programs[0], arguments.has("mxfp6-matmul"))
    keeps, fullest, known = arguments.has("retained-state"), shares[0], 0.0
    for program in programs:
        costs = {**weights, **interface_bytes(program, precisions, keeps)}
        for share in shares:
            size = _share_bytes(costs, share, shares)
            fullest, known = (share, size) if size > known else (fullest, known)
    needed = SPARE * known
    capacity = CAPACITY[programs[0].profile.sku]
    if needed > capacity * GIBIBYTE:
        where = f"each of the {fullest.devices} devices{' of ' * bool(fullest.name)}{fullest.name}"
        text = f"About {needed / GIBIBYTE:.1f} GiB are needed on {where}, which have {capacity}."
        programs[0].refuse("graph.memory", f"Memory resource exhausted: {text}")
    return ceil(known)


def _share_bytes(costs: Mapping[str, float], share: Share, shares: Sequence[Share]) -> float:
    """Bytes of each device of a partition; what no partition lists lies on all devices, which is the least it takes."""
    listed = set[str]().union(*(each.values for each in shares))
    own = sum(size for name, size in costs.items() if name in share.values)
    rest = sum(size for name, size in costs.items() if name not in listed)
    return own / share.devices + rest / sum(each.devices for each in shares)


def check_inputs(graph: onnx.GraphProto, symbols: Mapping[str, int], devices: int, profile: Profile) -> None:
    """Refuse inputs, states among them, that have no room though each number took but a byte.

    Before anything is inferred: of what large inputs make, inference alone may take more memory than there is.
    """
    shapes = [[symbols.get(str(size), size) for size in sizes_of(value)] for value in own_inputs(graph)]
    needed = sum(prod(size for size in shape if isinstance(size, int)) for shape in shapes) / devices
    if needed > CAPACITY[profile.sku] * GIBIBYTE:
        text = f"At least {needed / GIBIBYTE:.1f} GiB are needed on each of {devices} devices, for inputs alone."
        profile.refuse("graph.memory", f"Memory resource exhausted: {text}")


def check_operators(program: Program, compresses: bool, slices: int) -> None:
    """Refuse a node whose operands no core can map, its tensors sliced over so many devices."""
    matrices = _matrices(program) if compresses else set()
    for node in program.nodes:
        read = {name for name in node.input if name and program.bound.is_static(name)}
        size = sum(prod(program.shape(name)) * _operand_bytes(program, name, matrices) for name in read) / slices
        if size > WINDOW and node.op_type not in ("Shape", "Size"):
            text = f"QAIC_ERROR_MMAP_FAILURE: {node.op_type} reads {size / GIBIBYTE:.1f} GiB, of which a core maps 3.9."
            program.refuse("graph.operator-memory", text, node)


def _operand_bytes(program: Program, name: str, matrices: Collection[str]) -> float:
    if name in matrices:
        return MICROSCALED_BYTES
    kind = program.element_type(name)
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT):
        return HALF_BYTES
    return float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def weight_bytes(program: Program, compresses: bool) -> dict[str, float]:
    """Bytes of each constant: two for an element, less where a matrix is compressed.

    A matrix that is looked up as well (a table that is the head too) is there twice: folding its transpose makes a
    constant of its own.
    """
    matrices, others = _matrices(program), _used_otherwise(program)
    multiplied = MICROSCALED_BYTES if compresses else HALF_BYTES
    sizes = {}
    for tensor in program.bound.model.graph.initializer:
        is_matrix = tensor.name in matrices
        each = multiplied * is_matrix + HALF_BYTES * (not is_matrix or tensor.name in others)
        sizes[tensor.name] = prod(tensor.dims) * each
    return sizes


def _used_otherwise(program: Program) -> set[str]:
    """What nodes read that are neither multiplications, by their second operand, nor transpositions."""
    plain = (node for node in program.nodes if node.op_type != "Transpose")
    return {
        name
        for node in plain
        for place, name in enumerate(node.input)
        if place != 1 or node.op_type not in ("MatMul", "Gemm")
    }


def _matrices(program: Program) -> set[str]:
    """What the second operands of multiplications are, or are the transposes of."""
    turned = {node.output[0]: node.input[0] for node in program.nodes if node.op_type == "Transpose"}
    operands = {node.input[1] for node in program.nodes if node.op_type in ("MatMul", "Gemm")}
    return operands | {turned[name] for name in operands & set(turned)}


def interface_bytes(program: Program, precisions: Mapping[str, str], keeps: bool) -> dict[str, float]:
    """Bytes of each input and output; a state is there once where it is kept."""
    graph = program.bound.model.graph
    names = [value.name for value in (*own_inputs(graph), *graph.output)]
    counted = [name for name in names if not (keeps and input_of_state(name))]
    return {name: prod(program.shape(name)) * _element_bytes(program, name, precisions) for name in counted}


def _element_bytes(program: Program, name: str, precisions: Mapping[str, str]) -> float:
    if name in precisions:
        return STATE_BYTES.get(precisions[name], HALF_BYTES)
    return float(onnx.helper.tensor_dtype_to_np_dtype(program.element_type(name)).itemsize)
