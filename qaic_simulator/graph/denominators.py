"""Small constants that keep a denominator from zero, and become zero in fp16 themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import onnx

from qaic_simulator.graph.binding import Program, scan_body

SMALLEST_HALF = 2.0**-24
"""The smallest positive number of fp16."""
RAISING = ("Add", "Clip", "Max", "Sum")
"""Operators that keep a value above a constant."""
PASSING = ("Abs", "Cast", "Expand", "Identity", "Reshape", "Sqrt", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose result is no further from zero than their operand."""


def check_denominators(program: Program, kept_in_fp32: Collection[str]) -> None:
    """Refuse a division by what only such a constant keeps from zero, unless the node that adds it stays in fp32.

    The epsilons that normalizations have for attributes are left alone: these are kernels of their own, and encoders
    whose epsilon is 1e-12 are known to work.
    """
    for node, name, value in _Search(program, frozenset(kept_in_fp32)).faults():
        text = f"{node.op_type}: {value:g} keeps {name} from zero, but is zero in fp16."
        program.refuse("constants.epsilon", text, node)
    for node in program.nodes:
        body = scan_body(program, node) if node.op_type == "Scan" else None
        if body is not None:
            check_denominators(body, kept_in_fp32)


@dataclass
class _Search:
    program: Program
    kept: frozenset[str]
    raised: dict[str, float] = field(default_factory=dict)
    """Values that a constant too small for fp16 keeps above zero, and that constant."""

    def faults(self) -> Iterator[tuple[onnx.NodeProto, str, float]]:
        """The nodes that divide by such a value, in the order of the graph."""
        for node in self.program.nodes:
            name = self._denominator(node)
            if name in self.raised:
                yield node, name, self.raised[name]
            self._follow(node)

    def _follow(self, node: onnx.NodeProto) -> None:
        if node.op_type in PASSING and node.input[0] in self.raised:
            self.raised[node.output[0]] = self.raised[node.input[0]]
        elif node.op_type in RAISING and node.output[0] not in {*self.kept, *self.program.bound.constants}:
            small = [value for value in map(self._constant, node.input) if value is not None]
            if small and 0 < max(small) < SMALLEST_HALF:
                self.raised[node.output[0]] = max(small)

    def _denominator(self, node: onnx.NodeProto) -> str:
        """What a node divides by; empty if it does not divide."""
        if node.op_type == "Div":
            return str(node.input[1])
        exponent = self._constant(node.input[1]) if node.op_type == "Pow" else None
        divides = node.op_type == "Reciprocal" or (exponent is not None and exponent < 0)
        return str(node.input[0]) if divides else ""

    def _constant(self, name: str) -> float | None:
        """The value of a constant that is one float, or floats that are all the same."""
        value = self.program.bound.constants.get(name) if name else None
        if value is None or value.dtype.kind != "f" or not value.size or value.min() != value.max():
            return None
        return float(value.reshape(-1)[0])
