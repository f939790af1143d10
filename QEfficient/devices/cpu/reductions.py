"""Sums over an axis that OpenVINO computes wrongly are written in another way.

OpenVINO 2026.4 adds what follows a reduction within it. Where the reduced axis is dropped at the same time, a vector
that is added goes to the wrong axis: `x[rows, channels, n].sum(-1) + bias[channels]` is right for one row only. So the
axis is kept, and dropped in a step of its own.
"""

from __future__ import annotations

import onnx_ir as ir

PREFIX = "Reduce"


def keep_reduced_axes(model: ir.Model) -> None:
    """Reduce, then squeeze, wherever axes are named."""
    for node in list(model.graph.all_nodes()):
        if not node.domain and node.op_type.startswith(PREFIX) and _drops_axes(node):
            _split(node)


def _drops_axes(node: ir.Node) -> bool:
    keeps = node.attributes.get("keepdims")
    return keeps is not None and keeps.as_int() == 0 and len(node.inputs) > 1 and node.inputs[1] is not None


def _split(node: ir.Node) -> None:
    graph, old = node.graph, node.outputs[0]
    assert graph is not None
    attributes = [ir.AttrInt64("keepdims", 1) if a.name == "keepdims" else a for a in node.attributes.values()]
    kept = ir.Node(node.domain, node.op_type, list(node.inputs), attributes)
    kept.outputs[0].type = old.type
    squeezed = ir.node("Squeeze", [kept.outputs[0], node.inputs[1]])
    squeezed.outputs[0].type = old.type
    graph.insert_before(node, [kept, squeezed])
    squeezed.outputs[0].name, old.name = old.name, f"{old.name}.replaced"
    ir.convenience.replace_all_uses_with(old, squeezed.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
