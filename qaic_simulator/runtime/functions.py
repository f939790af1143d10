"""A model without functions and without names that are made twice, and which of its nodes keep a precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx
from onnx import inliner

from qaic_simulator.graph.file import bodies_of, nodes_within
from qaic_simulator.runtime.bodies import name_apart
from qaic_simulator.runtime.card_indices import with_card_indices
from qaic_simulator.runtime.settings import Pin


def flatten(model: onnx.ModelProto, pinned: Sequence[Pin]) -> tuple[onnx.ModelProto, list[Pin]]:
    """The model, its functions inlined; a call or a body's node whose precision is pinned pins all nodes inside."""
    found = []
    for names in pinned:
        kept = set(names)
        while call := _pinned_call(model, kept):
            before = _firsts(model)
            model = inliner.inline_selected_functions(model, [_own_function(model, call)])
            kept |= _firsts(model) - before
        found.append(kept)
    # Bodies have to say the shapes of what they give, and behind the card's rules these are not found any more.
    model = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model))
    model = with_card_indices(model)
    renamed = name_apart(model)
    return model, [_with_bodies(model, kept.union(*(renamed.get(name, ()) for name in kept))) for kept in found]


def _firsts(model: onnx.ModelProto) -> set[str]:
    return {node.output[0] for node in nodes_within(model.graph.node)}


def _with_bodies(model: onnx.ModelProto, kept: set[str]) -> Pin:
    for node in nodes_within(model.graph.node):
        if node.output[0] in kept:
            kept.update(inner.output[0] for body in bodies_of(node) for inner in body.node)
    return frozenset(kept)


def _pinned_call(model: onnx.ModelProto, kept: set[str]) -> onnx.NodeProto | None:
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = (node for node in nodes_within(model.graph.node) if (node.domain, node.op_type) in functions)
    return next((node for node in nodes if node.output[0] in kept), None)


def _own_function(model: onnx.ModelProto, call: onnx.NodeProto) -> tuple[str, str]:
    """Give one call a copy of its function, under a name of its own."""
    key = (call.domain, call.op_type)
    source = next(function for function in model.functions if (function.domain, function.name) == key)
    own = copy.deepcopy(source)
    own.name = call.op_type = f"{call.op_type}_of_{call.output[0]}"
    model.functions.append(own)
    return own.domain, own.name
