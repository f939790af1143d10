"""The card's rules for indices out of range, written into a graph.

A scatter to one is dropped, and a gather from one reads index 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, inliner, parser

from qaic_simulator.graph.file import nodes_within, opset_of
from qaic_simulator.graph.folding import attribute

DOMAIN = "qaic_simulator"
"""Of functions that say how the card computes."""

# Both need nothing beyond opset 11. A negative index counts from the end, as in ONNX.
_BOUNDS = """
    nothing = Constant<value = int64 {{0}}>()
    zero = Constant<value = int64[1] {{0}}>()
    one = Constant<value = int64[1] {{1}}>()
    first_axis = Constant<value = int64[1] {{{skipped}}}>()
    index_shape = Shape(indices)
    last = Constant<value = int64[1] {{-1}}>()
    depth = Gather<axis = 0>(index_shape, last)
    end = Add(first_axis, depth)
    shape = Shape(data)
    limits = Slice(shape, first_axis, end)
    is_negative = Less(indices, nothing)
    from_end = Add(indices, limits)
    counted = Where(is_negative, from_end, indices)
    is_below = Less(counted, nothing)
    is_inside = Less(counted, limits)
    is_beyond = Not(is_inside)
    is_outside = Or(is_below, is_beyond)
"""
_GATHER = """CardGatherND (data, indices) => (output) {{{bounds}
    safe = Where(is_outside, nothing, counted)
    output = GatherND{attributes}(data, safe)
}}"""
# A spare slice behind the last one takes what is dropped.
_SCATTER = """CardScatterND (data, indices, updates) => (output) {{{bounds}
    outside = Cast<to = 6>(is_outside)
    any_outside = {any_outside}
    is_dropped = Cast<to = 9>(any_outside)
    first = Slice(limits, zero, one)
    others = Sub(depth, one)
    zeros = ConstantOfShape<value = int64[1] {{0}}>(others)
    spare = Concat<axis = 0>(first, zeros)
    targets = Where(is_dropped, spare, counted)
    slice = Slice(data, zero, one)
    padded = Concat<axis = 0>(data, slice)
    written = ScatterND{attributes}(padded, targets, updates)
    output = Slice(written, zero, first)
}}"""


def with_card_indices(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with these rules, in bodies too."""
    opset = opset_of(model)
    texts: dict[str, str] = {}
    for node in nodes_within(model.graph.node):
        if node.op_type in ("GatherND", "ScatterND") and not node.domain:
            text = _function_text(node, opset)
            name = texts.setdefault(text, f"Card{node.op_type}{len(texts)}")
            del node.attribute[:]
            node.domain, node.op_type = DOMAIN, name
    return with_functions(model, texts)


def with_functions(model: onnx.ModelProto, texts: Mapping[str, str]) -> onnx.ModelProto:
    """The model, in which calls of our functions become what their texts say; the name of each, by its text."""
    imports = f'<domain: "{DOMAIN}", opset_import: ["" : {opset_of(model)}]>'
    for text, name in texts.items():
        function = parser.parse_function(f"{imports}\n{text}")
        function.name = name
        model.functions.append(function)
    if all(imported.domain != DOMAIN for imported in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return inliner.inline_local_functions(model)


def _function_text(node: onnx.NodeProto, opset: int) -> str:
    if node.op_type == "GatherND":
        skipped = attribute(node, "batch_dims", 0)
        attributes = f"<batch_dims = {skipped}>" if skipped else ""
        return _GATHER.format(bounds=_BOUNDS.format(skipped=skipped), attributes=attributes)
    reduction = attribute(node, "reduction", b"none").decode()
    attributes = "" if reduction == "none" else f'<reduction = "{reduction}">'
    any_outside = "ReduceMax(outside, last)" if opset >= 18 else "ReduceMax<axes = [-1]>(outside)"
    return _SCATTER.format(bounds=_BOUNDS.format(skipped=0), any_outside=any_outside, attributes=attributes)
