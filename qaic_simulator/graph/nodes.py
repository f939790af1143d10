"""What each node may be, once symbols are numbers: control flow, constant operands, and what no shape may hang on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from qaic_simulator.graph.binding import Program, scan_body, scanned_lengths
from qaic_simulator.graph.folding import attribute
from qaic_simulator.graph.operands import check_operands
from qaic_simulator.graph.operators import CONSTANCY, DATA_DEPENDENT, Requirement

LONGEST_SCAN = 4096
INT32_MAX = 2**31 - 1


def check_nodes(program: Program) -> None:
    """Refuse the first node, in the graph's order, that the importer would not take."""
    for node in program.nodes:
        _check_node(program, node)


def _check_node(program: Program, node: onnx.NodeProto) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    for requirement in CONSTANCY.get(node.op_type, ()):
        _check_constancy(program, node, requirement)
    if node.op_type in DATA_DEPENDENT and not all(name in program.bound.constants for name in node.input if name):
        program.refuse("nodes.data-dependent", f"{node.op_type}: output shape depends on data, not supported.", node)
    if node.op_type in _CHECKS:
        _CHECKS[node.op_type](program, node)
    check_operands(program, node)


def _check_constancy(program: Program, node: onnx.NodeProto, requirement: Requirement) -> None:
    for name in (node.input[place] for place in requirement.operands if place < len(node.input)):
        # A constant whose value is not worked out is none to an importer that folds operator by operator.
        if name and program.bound.constants.get(name) is None:
            text = f"{node.op_type}: Non-constant {requirement.what} tensor not supported."
            program.refuse(requirement.rule, text, node)


def _check_if(program: Program, node: onnx.NodeProto) -> None:
    """One that is left: where the condition is constant, the branch stands in its place."""
    if len(node.output) > 1:
        program.refuse("nodes.if-outputs", "Only single output 'then' subgraph is supported.", node)
    program.refuse("nodes.if-condition", "If: Non-constant condition tensor not supported.", node)


def _check_loop(program: Program, node: onnx.NodeProto) -> None:
    """One that is left: others are unrolled."""
    text = "Loop: only a constant trip count of at most 20 without collected outputs is supported."
    program.refuse("nodes.loop", text, node)


def _check_scan(program: Program, node: onnx.NodeProto) -> None:
    lengths = scanned_lengths(program, node)
    if len(lengths) < attribute(node, "num_scan_inputs") or max(lengths, default=0) > LONGEST_SCAN:
        text = f"Scan: lengths {list(lengths)} are not all known and at most {LONGEST_SCAN}."
        program.refuse("nodes.scan", text, node)
    body = scan_body(program, node)
    if body is not None:
        check_nodes(body)


def _check_einsum(program: Program, node: onnx.NodeProto) -> None:
    program.refuse("nodes.einsum", "Einsum: not supported, write it as multiplications and sums.", node)


def _check_cast(program: Program, node: onnx.NodeProto) -> None:
    name = node.input[0]
    if name in program.bound.constants:
        return
    kind = program.element_type(name)
    if kind == onnx.TensorProto.UINT8:
        program.refuse("nodes.cast-uint8", f"{node.op_type}: Unsupported cast from quantized type", node)
    if kind == onnx.TensorProto.INT8:
        program.refuse("nodes.cast-int8", f"{node.op_type}: Unsupported cast from quantized type", node)


def _check_diagonal(program: Program, node: onnx.NodeProto) -> None:
    name = node.input[1] if len(node.input) > 1 else ""
    value = program.bound.constants.get(name)
    if value is not None and value.ndim:
        text = f"Diagonal must be scalar, but has shape {value.shape}. Function verification failed"
        program.refuse("constancy.diagonal", text, node)


def _check_filling(program: Program, node: onnx.NodeProto) -> None:
    value = attribute(node, "value")
    if value is not None and (onnx.numpy_helper.to_array(value) == INT32_MAX).any():
        text = f"ConstantOfShape: filled with {INT32_MAX}; expand a scalar instead."
        program.refuse("constants.filled", text, node)


_CHECKS: Mapping[str, Callable[[Program, onnx.NodeProto], None]] = MappingProxyType(
    {
        "If": _check_if,
        "Loop": _check_loop,
        "Scan": _check_scan,
        "Einsum": _check_einsum,
        "Cast": _check_cast,
        "CastLike": _check_cast,
        "Trilu": _check_diagonal,
        "ConstantOfShape": _check_filling,
    }
)
