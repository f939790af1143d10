"""Which nodes should stay in fp32: those around a tensor that float16 does not hold.

A tensor that does not fit may lie between nodes in fp32 only: then the node that makes it stays in fp32, and so do all
that read it. One of these may make a tensor that does not fit either, and so on, until what comes out fits again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from QEfficient.devices.cloud_ai_100.graph.half_range import LARGEST
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph, reads
from QEfficient.devices.cloud_ai_100.numerics.measures import Measure

MARGIN = 0.5
"""Of float16's range: a text shows only some of the numbers that a model can come to."""
LIMIT = LARGEST * MARGIN
LOST = 0.05
"""Of a row, or of a constant, that rounding takes because it lies at the lower end of float16."""
FAR_ABOVE = 1e-3
"""What rounding takes at the lower end is less than 3e-8."""
EXACT = 2.0**-11
"""Relative error of one rounding within the range."""
AMPLIFIED = 8
"""Times that an error grows in one node that is sensitive to it."""

INTO_PROBABILITIES = ("Softmax", "LogSoftmax")
PASSING = frozenset(
    {"Add", "Where", "Cast", "CastLike", "Reshape", "Transpose", "Concat", "Slice", "Expand", "Unsqueeze", "Squeeze"}
    | {"Identity", "Max", "Min"}
)
"""Through these a score comes to a softmax with its order kept."""
SQUARING_INSIDE = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "InstanceNormalization"}
    | {"GroupNormalization", "LpNormalization", "ReduceL2"}
)
"""Operators that square what they read without showing it."""
PRODUCTS = ("MatMul", "Gemm", "Gather")


@dataclass(frozen=True)
class Reason:
    """Why a node is proposed."""

    kind: str
    """range | square | small | sensitive"""
    tensor: str
    text: str


Proposal = Mapping[str, Reason]
"""By first output of the program's node, in the order of the graph."""


class Advisor:
    """Proposes nodes of one graph by what was measured of its tensors."""

    def __init__(self, flat: FlatGraph, measures: Mapping[str, Measure]) -> None:
        self._flat, self._measures = flat, measures
        self._scores = _scores(flat)

    def reach(self, name: str) -> float:
        """How far a tensor goes toward the end of the range; a score may go down as far as it likes."""
        measure = self._measures[name]
        reach = max(measure.highest, 0.0) if name in self._scores else measure.largest
        return math.inf if math.isnan(reach) else reach

    def squared(self) -> dict[str, float]:
        """The reach of every tensor that some node squares."""
        found = {}
        for node in self._flat.all_nodes:
            for name in dict.fromkeys(reads(node)):
                if name in self._measures and _squares(self._flat, node, name):
                    found[name] = self._measures[name].largest
        return found

    def out_of_range(self) -> Proposal:
        """What overflows, or comes near it."""
        found: dict[str, Reason] = {}
        for name in self._measures:
            reach = self.reach(name)
            if not reach <= LIMIT:
                self._around(name, Reason("range", name, f"{name} reaches {reach:,.0f}"), found)
        for node in self._flat.all_nodes:
            if node.op_type in SQUARING_INSIDE and not node.domain and node.input[0] in self._measures:
                name = node.input[0]
                reach = self._measures[name].largest
                if not reach**2 <= LIMIT:
                    text = f"{name} reaches {reach:,.0f} and is squared inside"
                    found.setdefault(self._flat.owner(node), Reason("square", name, text))
        return self._ordered(found)

    def overflowing(self) -> Proposal:
        """Where the card's twin of a tensor is no number first, though the tensor is."""
        found: dict[str, Reason] = {}
        for name, measure in self._measures.items():
            if not math.isfinite(measure.error) and math.isfinite(self.reach(name)) and self._is_first(name):
                self._around(name, Reason("range", name, f"{name} is no number in float16"), found)
        return self._ordered(found)

    def too_small(self, threshold: float = LOST) -> Proposal:
        """What float16 rounds to zero or nearly so: it takes more than the threshold of a row or a constant."""
        found: dict[str, Reason] = {}
        for name in self._flat.constants:
            share = lost_share(self._flat.value(name))
            if share > threshold:
                reason = Reason("small", name, f"the constant {name} loses {share:.0%} of itself")
                for node in self._flat.readers.get(name, ()):
                    self._fixed_readers(node, reason, found)
        for name in self.lost(threshold):
            loss = self._measures[name].loss
            self._around(name, Reason("small", name, f"{name} loses {loss:.0%} of a row at the lower end"), found)
        return self._ordered(found)

    def lost(self, threshold: float = LOST) -> list[str]:
        """Tensors of which rounding takes more than the threshold from some row, where that is not made up for."""
        return [name for name in self._measures if self._loses(name, threshold) and self._matters(name, threshold)]

    def _loses(self, name: str, threshold: float) -> bool:
        measure = self._measures.get(name)
        return measure is not None and threshold < measure.loss < math.inf and self.reach(name) <= LIMIT

    def _matters(self, name: str, threshold: float) -> bool:
        """Whether anybody misses what a tensor lost at the lower end: not a sum that is everywhere far above it."""
        for node in self._flat.readers.get(name, ()):
            made = node.output[0]
            covers = node.op_type == "Add" and made in self._measures and self._measures[made].lowest >= FAR_ABOVE
            scales = node.op_type in ("Mul", "Div") and self._loses(made, threshold)
            if not covers and not (scales and not self._matters(made, threshold)):
                return True
        return name in self._flat.outputs

    def sensitive(self, threshold: float) -> Proposal:
        """Nodes that make a large error out of a small one."""
        found: dict[str, Reason] = {}
        for node in self._flat.nodes:
            name = node.output[0] if node.output else ""
            if name not in self._measures or node.op_type in PRODUCTS:
                continue
            error = self._measures[name].error
            before = max((self._measures[n].error for n in reads(node) if n in self._measures), default=0.0)
            if error > threshold and error > AMPLIFIED * max(before, EXACT):
                reason = Reason("sensitive", name, f"{name} is off by {error:.1%}, what it is made of by {before:.2%}")
                self._pin(node, reason, found)
                self._makers(node, reason, found)
        return self._ordered(found)

    def _is_first(self, name: str) -> bool:
        node = self._flat.producers[name]
        return all(math.isfinite(self._measures[n].error) for n in reads(node) if n in self._measures)

    def _around(self, name: str, reason: Reason, found: dict[str, Reason]) -> None:
        """A tensor's maker and its readers."""
        self._pin(self._flat.producers[name], reason, found)
        self._readers(name, reason, found)

    def _readers(self, name: str, reason: Reason, found: dict[str, Reason]) -> None:
        for node in self._flat.readers.get(name, ()):
            self._pin(node, reason, found)

    def _fixed_readers(self, node: onnx.NodeProto, reason: Reason, found: dict[str, Reason]) -> None:
        """A node that reads a constant, and who reads what it makes; past nodes that only turn the constant about."""
        self._pin(node, reason, found)
        for output in node.output:
            for reader in self._flat.readers.get(output, ()):
                if output in self._measures:
                    self._pin(reader, reason, found)
                else:
                    self._fixed_readers(reader, reason, found)

    def _makers(self, node: onnx.NodeProto, reason: Reason, found: dict[str, Reason]) -> None:
        """The nodes behind one, up to the products and lookups that its values come from."""
        pending = [node]
        while pending:
            for name in reads(pending.pop()):
                maker = self._flat.producers.get(name)
                is_new = maker is not None and self._flat.owner(maker) not in found
                if maker is not None and is_new and name in self._measures and maker.op_type not in PRODUCTS:
                    self._pin(maker, reason, found)
                    pending.append(maker)

    def _pin(self, node: onnx.NodeProto, reason: Reason, found: dict[str, Reason]) -> None:
        """A node, and what turns its constants about: they too would be rounded on the way."""
        if node.op_type != "Constant":
            found.setdefault(self._flat.owner(node), reason)
            for name in reads(node):
                maker = self._flat.producers.get(name)
                if maker is not None and self._flat.is_float(name) and name not in self._measures:
                    self._pin(maker, reason, found)

    def _ordered(self, found: Mapping[str, Reason]) -> Proposal:
        return ordered(self._flat, found)


def ordered(flat: FlatGraph, found: Mapping[str, Reason]) -> Proposal:
    """In the order of the graph."""
    owners = dict.fromkeys(flat.owner(node) for node in flat.nodes)
    return {owner: found[owner] for owner in owners if owner in found}


def lost_share(value: np.ndarray) -> float:
    """What rounding to float16 takes from a constant, as a part of its RMS. Values beyond the range are another
    question."""
    usual = value[np.abs(value) <= LARGEST].astype(np.float64)
    squares = float(np.square(usual).sum())
    lost = np.square(usual.astype(np.float16).astype(np.float64) - usual).sum()
    return math.sqrt(float(lost) / squares) if squares else 0.0


def _scores(flat: FlatGraph) -> set[str]:
    """What a softmax reads, also on its way there: a number far below the others counts for nothing in any case."""
    found: set[str] = set()
    pending = [node.input[0] for node in flat.all_nodes if node.op_type in INTO_PROBABILITIES]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _passed(flat.producers.get(name))
    return found


def _passed(node: onnx.NodeProto | None) -> Iterator[str]:
    if node is not None and node.op_type in PASSING:
        yield from (name for name in node.input if name)


def _squares(flat: FlatGraph, node: onnx.NodeProto, name: str) -> bool:
    """Whether a node squares a tensor."""
    if node.domain:
        return False
    if node.op_type == "Mul":
        return list(node.input) == [name, name]
    if node.op_type == "Pow" and node.input[0] == name:
        exponent = flat.constants.get(node.input[1])
        return exponent is not None and bool(np.all(flat.value(node.input[1]) == 2))
    return node.op_type in (*SQUARING_INSIDE, "ReduceSumSquare") and node.input[0] == name
