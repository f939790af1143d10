"""The finished graph against its contract."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from QEfficient.errors import ExportError
from QEfficient.program import GraphSpec, TensorSpec

_DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def _check_ends(kind: str, values: list[ir.Value], wanted: tuple[TensorSpec, ...]) -> None:
    names = [value.name for value in values]
    if names != [tensor.name for tensor in wanted]:
        raise ExportError(f"the graph's {kind}s are {names}, the contract says {[t.name for t in wanted]}.")
    for value, tensor in zip(values, wanted, strict=True):
        found = _DTYPES.get(value.dtype) if value.dtype is not None else None
        if found != tensor.dtype:
            raise ExportError(f"{kind} '{tensor.name}' is {found}, the contract says {tensor.dtype}.")


def _check_states(graph: ir.Graph, spec: GraphSpec) -> None:
    """Every state is used and every next state is computed, not handed through."""
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for state in spec.states:
        value = inputs[state.input.name]
        if not value.uses():
            raise ExportError(
                f"nothing reads the state '{state.input.name}': layer {state.layer} was traced without it."
            )
        producer = outputs[state.output.name].producer()
        if producer is None or (producer.op_type == "Identity" and producer.inputs[0] is value):
            raise ExportError(
                f"'{state.output.name}' is the state as it came in: layer {state.layer} never updates it."
            )


def _check_read(graph: ir.Graph, names: Iterable[str]) -> None:
    for name in names:
        value = next((v for v in graph.inputs if v.name == name), None)
        if value is not None and not value.uses():
            raise ExportError(f"nothing reads '{name}': the graph would answer the same whatever it is given.")


def check_graph(model: ir.Model, spec: GraphSpec) -> None:
    """Raise `ExportError` unless names, dtypes, state pairs and operators are as the contract says."""
    graph = model.graph
    _check_ends("input", list(graph.inputs), spec.all_inputs)
    _check_ends("output", list(graph.outputs), spec.all_outputs)
    _check_read(graph, [tensor.name for tensor in spec.inputs])
    _check_states(graph, spec)
    known = {(function.domain, function.name) for function in model.functions.values()}
    bodies = [node for function in model.functions.values() for node in function.all_nodes()]
    for node in [*graph.all_nodes(), *bodies]:
        if node.domain and (node.domain, node.op_type) not in known:
            raise ExportError(f"the graph uses {node.domain}::{node.op_type}, which has no body.")
