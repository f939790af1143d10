"""Rewrites of a finished graph: each a function `ir.Model → None`, in the order in which `PASSES` lists them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from QEfficient.graph.tracing import quiet
from QEfficient.operators.functions import build_function, has_body
from QEfficient.specs import ExportSpec

FOLD_LIMIT = 16384
"""Elements: constants up to this size are folded; weights, which have no data here, are larger or left alone."""
HALF_MAX = 65504.0


def fold_and_clean(model: ir.Model) -> None:
    """Fold what is constant, drop what is unused or repeated."""
    with quiet():
        optimizer.fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        for clean in (
            common.IdentityEliminationPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
        ):
            clean(model)
    for function in model.functions.values():
        for graph in function.graph.subgraphs():
            initializers_to_nodes(graph)


def initializers_to_nodes(graph: ir.Graph) -> None:
    """Make constants nodes, as functions want them: who inlines a function renames what its nodes compute, no more."""
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        node = ir.node("Constant", [], {"value": ir.tensor(value.const_value.numpy())})
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del graph.initializers[name]


def add_bodies(model: ir.Model) -> None:
    """Add the portable body of every custom operator that the graph, or a body, uses."""
    pending = [node for graph in model.graphs() for node in graph]
    pending += [node for function in model.functions.values() for node in function.all_nodes()]
    while pending:
        node = pending.pop()
        key = (node.domain, node.op_type, node.overload)
        if key in model.functions or not has_body(node.domain, node.op_type):
            continue
        function = ir.serde.deserialize_function(build_function(node.domain, node.op_type))
        model.functions[key] = function
        pending += list(function.all_nodes())
    domains = {node.domain for graph in model.graphs() for node in graph.all_nodes()}
    domains |= {n.domain for f in model.functions.values() for n in f.all_nodes()}
    for domain in domains - {""}:
        model.opset_imports.setdefault(domain, 1)
        for function in model.functions.values():
            function.opset_imports.setdefault(domain, 1)


def _clipped(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    if tensor.dtype != ir.DataType.FLOAT:
        return None
    values = tensor.numpy()
    outside = (np.abs(values) > HALF_MAX) & (values != -np.inf)
    if not outside.any():
        return None
    return ir.tensor(
        np.where(outside, np.clip(values, -HALF_MAX, HALF_MAX), values).astype(np.float32), name=tensor.name
    )


def clip_to_half(model: ir.Model) -> None:
    """Clip float constants to what float16 holds; minus infinity stays. Streamed weights clip as they are written."""
    for graph in [*model.graphs(), *(f.graph for f in model.functions.values())]:
        for value in getattr(graph, "initializers", {}).values():
            if value.const_value is not None:
                value.const_value = _clipped(value.const_value) or value.const_value
        for node in graph.all_nodes():
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if isinstance(attribute, ir.Attr) and isinstance(attribute.value, ir.TensorProtocol):
                new = _clipped(attribute.value)
                if new is not None:
                    node.attributes["value"] = ir.AttrTensor("value", new)


def widen_bfloat16(model: ir.Model) -> None:
    """Compute in float32 what a model of another dtype computes in bfloat16, and round: the same numbers, on runtimes
    that know no bfloat16 but its conversion."""
    for graph in [*model.graphs(), *(f.graph for f in model.functions.values())]:
        for node in list(graph):
            if (
                node.op_type != "Cast"
                and node.inputs
                and ir.DataType.BFLOAT16 in map(_dtype, (*node.inputs, *node.outputs))
            ):
                _widen(graph, node)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return value.dtype if value is not None else None


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if _dtype(value) == ir.DataType.BFLOAT16:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            cast.outputs[0].dtype = ir.DataType.FLOAT
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
            rounded = ir.node("Cast", [value], {"to": ir.DataType.BFLOAT16})
            rounded.outputs[0].dtype, rounded.outputs[0].shape = ir.DataType.BFLOAT16, value.shape
            ir.convenience.replace_all_uses_with(value, rounded.outputs[0])
            rounded.replace_input_with(0, value)
            graph.insert_after(node, rounded)


Pass = Callable[[ir.Model], None]


def passes_for(spec: ExportSpec) -> list[Pass]:
    """The passes of one export, in order."""
    chosen: list[Pass] = [fold_and_clean, add_bodies]
    if spec.dtype != "bfloat16":
        chosen.append(widen_bfloat16)
    if spec.clip_fp16:
        chosen.append(clip_to_half)
    return chosen
