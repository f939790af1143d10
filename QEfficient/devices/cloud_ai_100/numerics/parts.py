"""Which layer a node belongs to, where nobody says: weights and states have numbers in their names.

What reads the weights or states of layer 3 is of layer 3, and so is what follows until those of layer 4 are read. The
border is drawn better where all that goes on passes through one tensor: what comes behind the last such tensor of layer
3 is of layer 4, its first norm among it, whose weight comes at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from QEfficient.devices.cloud_ai_100.graph.table_lookups import PREFIX
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph, reads, within

BEFORE = -1
"""The embedding, and what depends on positions alone."""
TOKENS = "input_ids"
SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Parts:
    """The parts of a graph, in order."""

    of_node: Mapping[str, int]
    """By first output."""
    layers: int
    last: Mapping[int, str]
    """The float tensor that each part ends with."""

    def name(self, part: int) -> str:
        """`layer 3`."""
        return "embedding" if part == BEFORE else "head" if part >= self.layers else f"layer {part}"

    @property
    def numbers(self) -> list[int]:
        return sorted({*self.of_node.values(), *self.last})


def find_parts(flat: FlatGraph, states: Mapping[str, int]) -> Parts:
    """`states`: the layer of each state, by input name."""
    named = {tensor.name: _number(tensor.name) for tensor in flat.model.graph.initializer} | dict(states)
    layers = max(named.values(), default=BEFORE) + 1
    first = _forward(flat, named, {})
    borders = _borders(flat, named, first)
    behind = {name: part + 1 for part, name in borders.items()}
    of_tensor = _forward(flat, named, behind)
    of_node = {
        inner.output[0]: of_tensor[node.output[0]]
        for node in flat.nodes
        if node.output
        for inner in within([node])
        if inner.output
    }
    last = {of_tensor[name]: name for name in flat.computed if name not in states and _goes_on(flat, name, of_tensor)}
    last |= {of_tensor[name]: name for name in borders.values()}
    last[max([*last, layers])] = flat.outputs[0]
    return Parts(of_node, layers, last)


def _number(name: str) -> int:
    if name.startswith(PREFIX):  # of all layers
        return BEFORE
    found = re.search(r"\.(\d+)(\.|$)", name)
    return int(found[1]) if found else BEFORE


def _forward(flat: FlatGraph, named: Mapping[str, int], behind: Mapping[str, int]) -> dict[str, int]:
    """The part of every tensor: the highest of what it is made of. Who reads a border is behind it."""
    found = dict(named)
    for node in flat.nodes:
        part = max((max(found.get(name, BEFORE), behind.get(name, BEFORE)) for name in reads(node)), default=BEFORE)
        found |= dict.fromkeys(node.output, part)
    return found


def _goes_on(flat: FlatGraph, name: str, parts: Mapping[str, int]) -> bool:
    """Whether a later part reads a tensor."""
    return any(parts[node.output[0]] > parts[name] for node in flat.consumers.get(name, ()))


def _borders(flat: FlatGraph, named: Mapping[str, int], parts: Mapping[str, int]) -> dict[int, str]:
    """For each part the first tensor behind its own weights and states that is all that goes on from the tokens."""
    ends = {}
    for place, node in enumerate(flat.nodes):
        part = max((named.get(name, BEFORE) for name in reads(node)), default=BEFORE)
        if part != BEFORE and part == parts[node.output[0]]:
            ends[part] = place
    start, borders = min(ends.values(), default=0), {}
    for place, name in _bottlenecks(flat):
        part = parts[name]
        if (place < start) if part == BEFORE else (part not in borders and place >= ends[part]):
            borders[part] = name
    return borders


def _bottlenecks(flat: FlatGraph) -> Iterator[tuple[int, str]]:
    """Where one float tensor alone goes on: the place of the last node before, and the tensor."""
    pending = {name: len(nodes) for name, nodes in flat.consumers.items()}
    made, live = {TOKENS}, {TOKENS}
    for place, node in enumerate(flat.nodes):
        for name in set(reads(node)) & live:
            pending[name] -= 1
            if not pending[name]:
                live.discard(name)
        if _follows(node, made):
            made |= set(node.output)
            live |= {name for name in node.output if pending.get(name)}
        if len(live) == 1:
            (only,) = live
            if flat.is_float(only):
                yield place, only


def _follows(node: onnx.NodeProto, made: set[str]) -> bool:
    return node.op_type not in SIZES and any(name in made for name in reads(node))
