"""Which nodes go with which layers, by the names that the compiler knows nodes by: what a pipeline is cut by.

A node belongs to the layer whose weights it reads, for the name of a weight is the path of its module; where weights
don't tell layers apart, to the layer whose state it reads or writes. All others go with what is around them. The graph
is in an order in which values come before their use, and a partition is a piece of that order, so no partition waits
for a later one: what is before the first layer is in the first, what is after the last layer in the last. Between two
layers, the cut is where the fewest values go over from device to device: the sum of a layer, before its norm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import onnx
from onnx.inliner import inline_selected_functions

from QEfficient.devices.cloud_ai_100.graph.half_range import within_half
from QEfficient.devices.cloud_ai_100.graph.position_tables import used_by
from QEfficient.devices.cloud_ai_100.partitions import layers_per_partition
from QEfficient.errors import OptionError
from QEfficient.program import GraphSpec

FEWEST_OF_FUNCTION = 100
"""Nodes of a function that stays one; smaller ones become nodes of the graph when the compiler reads it."""
NEVER_INLINED = (("com.qti.aisw.onnx", "CustomRMSNorm"), ("com.qti.aisw.onnx", "CastToUInt4"))
"""Functions that the compiler has a node for, however small they are."""
MODULE = re.compile(r"(.+?)\.(\d+)(?:\.|$)")
"""The list that a weight's module is in, and its number there: the outermost list, of which layers are members."""


def with_names(path: Path, scratch: Path) -> Path:
    """The graph in `path`, or a copy in a folder in `scratch` whose nodes all have names."""
    folder = scratch / "named"
    folder.mkdir()
    return within_half(path, folder, _name_nodes)


def node_lists(path: Path, graph: GraphSpec, partitions: int) -> list[list[str]]:
    """The names of the nodes of each partition."""
    model = _as_read(onnx.load(path, load_external_data=False))
    layers = _layers(model.graph, graph)
    numbers = sorted({layer for layer in layers if layer is not None})
    if not numbers:
        raise OptionError(
            f"mdp_num_partitions {partitions} was asked for, but neither weights nor states of the graph say which"
            " layer they are of. Bring a file with mdp_load_partition_config."
        )
    firsts = list(accumulate(layers_per_partition(len(numbers), partitions)))[:-1]
    crossings = _crossings(model.graph)
    cuts = [0, *(_cut(layers, numbers[first], crossings) for first in firsts), len(layers)]
    names = [node.name for node in model.graph.node]
    return [names[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def _name_nodes(model: onnx.ModelProto) -> bool:
    """Name what has no name, as the compiler would: after what it makes. Whether there was something to name."""
    return sum(_name(scope) for scope in (model.graph, *model.functions)) > 0


def _name(scope: Any) -> int:
    taken = {node.name for node in scope.node}
    unnamed = [node for node in scope.node if not node.name]
    for node in unnamed:
        name = next(filter(None, node.output), node.op_type)
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
    return len(unnamed)


def _as_read(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as the compiler has it once it has read it."""
    large = [(f.domain, f.name) for f in model.functions if len(f.node) >= FEWEST_OF_FUNCTION]
    return inline_selected_functions(model, [*large, *NEVER_INLINED], exclude=True)


def _layers(graph: onnx.GraphProto, spec: GraphSpec) -> list[int | None]:
    """By node, the layer that it certainly belongs to."""
    found = _by_weights(graph)
    of_layers = [state for state in spec.states if state.layer >= 0]  # what a sampler keeps is no layer's
    states = {name: state.layer for state in of_layers for name in (state.input.name, state.output.name)}
    if len({*found} - {None}) < len(set(states.values())):
        return [_highest(_touched(node), states) for node in graph.node]
    return found


def _by_weights(graph: onnx.GraphProto) -> list[int | None]:
    """By the weights that one node alone reads: those of several may be several layers', under the name of one."""
    numbers, constants = _layers_of_weights(graph), _constants(graph)
    source = {name: name for name in numbers}
    for node in graph.node:  # a weight that is turned, or cut, is still that weight
        found = next((source[name] for name in node.input if name in source), None)
        if found is not None and constants.issuperset(node.output):
            source |= dict.fromkeys(node.output, found)
    computing = [set() if constants.issuperset(node.output) else used_by(node) for node in graph.node]
    weights = [{source[name] for name in names & source.keys()} for names in computing]
    readers = Counter(name for names in weights for name in names)
    return [_highest((name for name in names if readers[name] == 1), numbers) for names in weights]


def _touched(node: onnx.NodeProto) -> set[str]:
    """What it reads or writes. The size of a state, which all layers may need, is nothing of it."""
    return set() if node.op_type == "Shape" else {*used_by(node), *node.output}


def _highest(names: Iterable[str], numbers: Mapping[str, int]) -> int | None:
    return max((numbers[name] for name in names if name in numbers), default=None)


def _layers_of_weights(graph: onnx.GraphProto) -> dict[str, int]:
    """The weights in the list of modules that most weights are in, which is that of the layers, and their layers."""
    found = {tensor.name: match for tensor in graph.initializer if (match := MODULE.match(tensor.name))}
    lists = Counter(match[1] for match in found.values())
    largest = max(lists, key=lambda name: lists[name], default="")
    return {name: int(match[2]) for name, match in found.items() if match[1] == largest}


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Values that nothing but constants is behind."""
    constants = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if constants.issuperset(used_by(node)):
            constants |= set(node.output)
    return constants


def _crossings(graph: onnx.GraphProto) -> list[int]:
    """By place, how many values are made before it and needed behind it. Constants are where they are needed."""
    constants = _constants(graph)
    made: dict[str, int] = {}
    needed: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        needed |= dict.fromkeys(used_by(node) & made.keys(), place)
        made |= dict.fromkeys(set(node.output) - constants, place)
    changes = [0] * (len(graph.node) + 1)
    for name, last in needed.items():
        changes[made[name] + 1] += 1
        changes[last + 1] -= 1
    return list(accumulate(changes))


def _cut(layers: Sequence[int | None], number: int, crossings: Sequence[int]) -> int:
    """The place where layer `number` begins: with the fewest nodes on the wrong side, where the fewest values cross."""
    sides = (0 if layer is None else 1 if layer >= number else -1 for layer in layers)
    misplaced = list(accumulate(sides, initial=0))
    return min(range(len(crossings)), key=lambda place: (misplaced[place], crossings[place]))
