"""Half-precision graphs computed in float32: weights keep the values of the checkpoint, sums do not lose any.

What is computed in less than float32 is then the runtime's choice, one for the whole program.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

HALVES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


def widen(model: ir.Model) -> None:
    """Give every value, cast and constant of the graph and its functions the type float32. Initializers keep their
    data: whoever writes these converts them."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for value in _values(graph):
            if value.dtype in HALVES:
                value.dtype = ir.DataType.FLOAT
        for node in graph.all_nodes():
            _widen_attributes(node)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for part in (graph, *graph.subgraphs()):
        yield from part.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _widen_attributes(node: ir.Node) -> None:
    for name in ("to", "dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type == ir.AttributeType.INT and attribute.as_int() in HALVES:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype in HALVES:
        wide = value.as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))
