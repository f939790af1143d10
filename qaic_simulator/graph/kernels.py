"""Types for which a generation of chips has no kernels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from qaic_simulator.graph.binding import Program, scan_body
from qaic_simulator.profiles import Hardware


def check_kernels(program: Program, hardware: Hardware) -> None:
    """Refuse bfloat16 where the chip has none. Constants that are converted while the graph is read never get there."""
    if hardware.has_bfloat16:
        return
    graph = program.bound.model.graph
    for value in (*graph.input, *graph.output):
        if program.element_type(value.name) == onnx.TensorProto.BFLOAT16:
            program.refuse("graph.bfloat16", _text(value.name, hardware))
    for node, name in _used(program):
        if program.element_type(name) == onnx.TensorProto.BFLOAT16:
            program.refuse("graph.bfloat16", _text(name, hardware), node)
    for node in program.nodes:
        body = scan_body(program, node) if node.op_type == "Scan" else None
        if body is not None:
            check_kernels(body, hardware)


def _text(name: str, hardware: Hardware) -> str:
    return f"Kernel lookup failed: {name} is bfloat16, which has no kernels on {hardware.name}."


def _used(program: Program) -> Iterator[tuple[onnx.NodeProto, str]]:
    """What nodes read and make when the program runs."""
    for node in program.nodes:
        if not program.is_folded(node):
            yield from ((node, name) for name in (*node.input, *node.output) if name)
