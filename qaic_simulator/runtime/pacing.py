"""How long a card would take for a run, by figures that others have published of real ones; `QAIC_SIM_PACE=1` waits.

A run reads all weights of matrices and the whole compiled context of its rows, or computes for longer than that;
several SoCs add up their parts twice per layer. Not in it: the arithmetic of attention, contexts that are read in part,
the power limit. Of a bank of matrices that tokens choose from, one is counted: a run takes at least that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import inliner

from qaic_simulator.graph.file import nodes_within
from qaic_simulator.graph.folding import attribute
from qaic_simulator.graph.memory import HALF_BYTES, MICROSCALED_BYTES, STATE_BYTES
from qaic_simulator.network_descriptor import Binding, NetworkDescriptor
from qaic_simulator.runtime.bodies import graphs_within, name_apart
from qaic_simulator.runtime.matrices import makers_of, matrices_of
from qaic_simulator.runtime.settings import Settings
from qaic_simulator.side_files.custom_io import input_of_state

PACE_VARIABLE = "QAIC_SIM_PACE"
STREAMING = 90e9
"""Bytes per second that a SoC really reads, of 137e9 on the data sheet."""
COLLECTIVE = 45e-6
"""Seconds for SoCs to add up their parts of a layer, which happens twice in each."""
PEAK = 72.5e12
"""Operations in float16 per second of a SoC of an Ultra card, by the data sheet."""
PEAK_SHARE_ALONE, PEAK_SHARE_TOGETHER = 0.20, 0.13
"""What prompts reach of it, on one SoC and on several."""
_STATES_OF_A_LAYER = 2
_BYTES = {0: STATE_BYTES["float"]}
"""Of an element, by the type that a descriptor gives; two otherwise."""


@dataclass(frozen=True)
class Pace:
    """What a program moves and computes."""

    elements: int
    """Of all matrices."""
    matrix_bytes: float
    state_bytes: float
    """Of one row, its whole context."""
    layers: int
    devices: int

    def seconds(self, shapes: Iterable[Sequence[int]]) -> float:
        """Of a run over inputs of these shapes; the longest of `[rows, tokens]` says how much there is to do."""
        rows, tokens = max((shape for shape in shapes if len(shape) == 2), key=prod, default=(1, 1))
        read = (self.matrix_bytes + rows * self.state_bytes) / self.devices / STREAMING
        adding = 2 * self.layers * COLLECTIVE if self.devices > 1 else 0.0
        share = PEAK_SHARE_ALONE if self.devices == 1 else PEAK_SHARE_TOGETHER
        computing = 2 * self.elements * rows * tokens / (share * PEAK * self.devices)
        return max(computing, read + adding)


def is_paced() -> bool:
    """Whether runs are to take as long as on a card."""
    asked = os.environ.get(PACE_VARIABLE) or "0"
    if asked not in ("0", "1"):
        raise ValueError(f"{PACE_VARIABLE} is {asked!r}; it can be 0 or 1.")
    return asked == "1"


def pace_of(raw: bytes, descriptor: NetworkDescriptor, settings: Settings) -> Pace:
    """What a program's graph and its states say of it; the data of its weights are not needed."""
    sizes = _matrix_sizes(onnx.ModelProto.FromString(raw))
    outputs = {input_of_state(binding.name) for binding in descriptor.outputs}
    states = [binding for binding in descriptor.inputs if binding.name in outputs]
    element = MICROSCALED_BYTES if settings.mxfp6 else HALF_BYTES
    return Pace(
        elements=sum(sizes),
        matrix_bytes=sum(sizes) * element,
        state_bytes=sum(_row_bytes(binding, settings) for binding in states),
        layers=-(-len(states) // _STATES_OF_A_LAYER),
        devices=settings.devices,
    )


def _matrix_sizes(model: onnx.ModelProto) -> list[int]:
    """Elements of each matrix that something is multiplied with: the head is one, an embedding table is none."""
    model = inliner.inline_local_functions(model)
    name_apart(model)
    producers, shapes = makers_of(model.graph), _constant_shapes(model.graph)
    found = {}
    for node in nodes_within(model.graph.node):
        for _, matrix in matrices_of(node, producers, shapes):
            shape = shapes[matrix.name]
            found[matrix.name] = prod(shape[1:] if matrix.is_chosen else shape)
    return list(found.values())


def _constant_shapes(graph: onnx.GraphProto) -> dict[str, Sequence[int]]:
    tensors = {tensor.name: tensor for part in graphs_within(graph) for tensor in part.initializer}
    nodes = (node for node in nodes_within(graph.node) if node.op_type == "Constant")
    tensors |= {node.output[0]: value for node in nodes if (value := attribute(node, "value")) is not None}
    return {name: tuple(tensor.dims) for name, tensor in tensors.items()}


def _row_bytes(state: Binding, settings: Settings) -> float:
    size = STATE_BYTES["mxint8"] if state.name in settings.mxint8 else _BYTES.get(state.shape.type, HALF_BYTES)
    return prod(state.shape.dims[1:]) * size
