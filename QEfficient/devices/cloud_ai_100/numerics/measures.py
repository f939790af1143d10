"""What is told of each tensor, taken inside the graph: five numbers, so that no tensor has to leave it.

Scores of what must not be seen (the lowest number of float16, or minus infinity) are no values of the model and are
left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, parser

from QEfficient.devices.cloud_ai_100.graph.half_range import LARGEST

OUTPUT = "measures~"
COUNT = 5

_CONSTANTS: Mapping[str, Any] = {
    "last": {"value_ints": [-1]},
    "one": {"value_ints": [1]},
    "zero": {"value_float": 0.0},
    "tiny": {"value_float": 1e-30},
    "lowest_half": {"value_float": -LARGEST},
}
# A row of nothing but zeros loses nothing.
_STEPS = """Measure (given, given_twin, last, one, zero, tiny, lowest_half) => (measures) {
    is_lowest = Equal(given, lowest_half)
    is_open = IsInf<detect_positive = 0>(given)
    is_hidden = Or(is_lowest, is_open)
    seen = Where(is_hidden, zero, given)
    difference = Sub(given_twin, given)
    error = Where(is_hidden, zero, difference)
    highest = ReduceMax<keepdims = 0>(seen)
    lowest = ReduceMin<keepdims = 0>(seen)
    error_squares = ReduceSumSquare<keepdims = 0>(error)
    squares = ReduceSumSquare<keepdims = 0>(seen)
    half = Cast<to = 10>(seen)
    back = Cast<to = 1>(half)
    lost = Sub(back, seen)
    lost_rows = ReduceL2<keepdims = 0>(lost, last)
    rows = ReduceL2<keepdims = 0>(seen, last)
    divisors = Max(rows, tiny)
    shares = Div(lost_rows, divisors)
    share = ReduceMax<keepdims = 0>(shares)
    highest1 = Reshape(highest, one)
    lowest1 = Reshape(lowest, one)
    error1 = Reshape(error_squares, one)
    squares1 = Reshape(squares, one)
    share1 = Reshape(share, one)
    measures = Concat<axis = 0>(highest1, lowest1, error1, squares1, share1)
}"""
MARK = "~measured~"


@dataclass(frozen=True)
class Measure:
    """Of one tensor as exported, over a whole text, and of its twin's distance from it."""

    highest: float
    lowest: float
    error: float
    """RMS of the difference as a part of the RMS of the values; not finite where the twin is not."""
    loss: float
    """What rounding to float16 takes from the row that it takes most from, as a part of that row. Below 0.0005 unless
    values leave the range at one of its ends."""

    @property
    def largest(self) -> float:
        return max(abs(self.highest), abs(self.lowest))


def nodes(pairs: Iterable[tuple[str, str, int | None]], output: str = OUTPUT) -> list[onnx.NodeProto]:
    """Measures of tensors (name, twin, dimensions), and one output with those of all of them, in order."""
    constants = {name: f"{output}{MARK}{name}" for name in _CONSTANTS}
    made = [helper.make_node("Constant", [], [constants[name]], **value) for name, value in _CONSTANTS.items()]
    steps = parser.parse_function(f'<domain: "measures", opset_import: ["" : 18]>\n{_STEPS}').node
    found = []
    for name, twin, rank in pairs:
        given = {"given": name, "given_twin": twin}
        if not rank:  # a plain number, or of unknown form: one row
            for place, source in given.items():
                given[place] = f"{source}{MARK}row"
                made.append(helper.make_node("Reshape", [source, constants["last"]], [given[place]]))
        own = given | constants
        for step in steps:
            node = copy.deepcopy(step)
            for names in (node.input, node.output):
                names[:] = [own.get(tensor, f"{name}{MARK}{tensor}") for tensor in names]
            made.append(node)
        found.append(f"{name}{MARK}measures")
    return [*made, helper.make_node("Concat", found, [output], axis=0)]


class Gathered:
    """Measures of several runs, put together."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._runs: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """What one run gave, or each step of one."""
        self._runs.append(values.reshape(-1, len(self._names), COUNT).astype(np.float64))

    def found(self) -> dict[str, Measure]:
        """By tensor, in order."""
        runs = np.concatenate(self._runs)
        highest, lowest, share = runs[:, :, 0].max(0), runs[:, :, 1].min(0), runs[:, :, 4].max(0)
        errors, squares = runs[:, :, 2].sum(0), runs[:, :, 3].sum(0)
        return {
            name: Measure(float(highest[i]), float(lowest[i]), _ratio(errors[i], squares[i]), float(share[i]))
            for i, name in enumerate(self._names)
        }


def _ratio(errors: float, squares: float) -> float:
    if not math.isfinite(errors):
        return math.inf
    return math.sqrt(errors / squares) if squares else (math.inf if errors else 0.0)
