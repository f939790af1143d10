"""The body of a recurrent mixer's node: a Scan over time around the mixer's own single-token step.

Inside the step a sequence at position 0 starts from zeros, whatever its slot held, and a padded token (position -1)
leaves the state as it was. Inputs: sequences…, position_ids[, batch_index], states…, parameters…; outputs: results…,
next states….
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from torch.export import Dim

from QEfficient.graph.passes import initializers_to_nodes
from QEfficient.graph.tracing import to_onnx
from QEfficient.operators.functions import DOMAIN, OPSET


class _Nodes:
    """Collects nodes; each call returns the node's first output."""

    def __init__(self) -> None:
        self.list: list[ir.Node] = []

    def __call__(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(inputs), attributes or None)
        self.list.append(node)
        return node.outputs[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        return self("Constant", value=ir.tensor(np.array(value, dtype=dtype)))


def recurrent_function(record: Any) -> ir.Function:
    """The ONNX function of one kind of mixer. `record` says what its step takes (see `transformers.mixers`)."""
    step = _step_graph(record)
    names = [f"sequence_{i}" for i in range(record.sequences)] + ["position_ids"]
    names += ["batch_index"] if record.slots else []
    names += [f"state_{i}" for i in range(record.states)]
    parameters = list(step.inputs)[record.sequences + record.states :]
    names += [f"parameter_{i}" for i in range(len(parameters))]
    inputs = {name: ir.Value(name=name) for name in names}

    outer = _Nodes()
    states = [inputs[f"state_{i}"] for i in range(record.states)]
    rows = outer("Squeeze", inputs["batch_index"], outer.constant([1])) if record.slots else None
    carried = [outer("Gather", s, rows, axis=0) if rows is not None else s for s in states]
    for value, parameter in zip((inputs[f"parameter_{i}"] for i in range(len(parameters))), parameters, strict=True):
        ir.convenience.replace_all_uses_with(parameter, value)
    scan = _scan(
        step, record, carried, [inputs[f"sequence_{i}"] for i in range(record.sequences)], inputs["position_ids"]
    )
    outer.list.append(scan)
    new_states = list(scan.outputs[: record.states])
    if record.slots:
        new_states = [
            outer("ScatterND", old, inputs["batch_index"], new) for old, new in zip(states, new_states, strict=True)
        ]
    outputs = [*scan.outputs[record.states :], *new_states]
    graph = ir.Graph(list(inputs.values()), outputs, nodes=outer.list, opset_imports={"": OPSET}, name=record.name)
    return ir.Function(DOMAIN, record.name, graph=graph, attributes=[])


def _step_graph(record: Any) -> ir.Graph:
    """The traced step. Its values get names of their own: those around it are numbered in the same way."""
    rows = Dim("batch_size", min=1, max=1 << 24)
    examples = record.examples()
    moving = record.sequences + record.states
    dynamic = (tuple({0: rows} if i < moving else {} for i in range(len(examples))),)
    model, _ = to_onnx(record.step, examples, dynamic, f"the step of {record.name}")
    initializers_to_nodes(model.graph)
    for number, value in enumerate(value for node in model.graph.all_nodes() for value in node.outputs):
        value.name = f"step_{number}"
    return model.graph


def _scan(
    step: ir.Graph, record: Any, states: list[ir.Value], sequences: list[ir.Value], positions: ir.Value
) -> ir.Node:
    body = _Nodes()
    moving = list(step.inputs)
    tokens = [_body_input(f"token_{i}", moving[i], dropped_axis=1) for i in range(record.sequences)]
    carried = [_body_input(f"carried_{i}", moving[record.sequences + i]) for i in range(record.states)]
    position = ir.Value(name="position", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["rows"]))
    zero, axis = body.constant(0), body.constant([1])
    starts, counts = body("Equal", position, zero), body("GreaterOrEqual", position, zero)
    step_inputs = [body("Unsqueeze", token, axis) for token in tokens]
    for value, shape in zip(carried, record.shapes[1], strict=True):
        nothing = body("CastLike", zero, value)
        step_inputs.append(body("Where", _shaped(body, starts, shape), nothing, value))
    for wanted, given in zip(list(step.inputs)[: len(step_inputs)], step_inputs, strict=True):
        ir.convenience.replace_all_uses_with(wanted, given)
    results = [step_inputs[list(step.inputs).index(r)] if r.is_graph_input() else r for r in step.outputs]
    nodes = list(step)
    step.outputs.clear()
    step.remove(nodes)
    body.list.extend(nodes)
    next_states = []
    for old, new, shape in zip(carried, results[record.outputs :], record.shapes[1], strict=True):
        new = body("CastLike", new, old)
        next_states.append(body("Where", _shaped(body, counts, shape), new, old))
    outputs = [body("Squeeze", r, axis) for r in results[: record.outputs]]
    graph = ir.Graph(
        [*carried, *tokens, position], [*next_states, *outputs], nodes=body.list, name=f"{record.name}_step"
    )
    return ir.node(
        "Scan",
        [*states, *sequences, positions],
        {
            "body": graph,
            "num_scan_inputs": record.sequences + 1,
            "scan_input_axes": [1] * (record.sequences + 1),
            "scan_output_axes": [1] * record.outputs,
        },
        num_outputs=record.states + record.outputs,
    )


def _body_input(name: str, traced: ir.Value, dropped_axis: int | None = None) -> ir.Value:
    """An input with type and shape: some runtimes do not look for them outside of a body."""
    assert traced.shape is not None
    sizes = [size for axis, size in enumerate(traced.shape) if axis != dropped_axis]
    return ir.Value(name=name, type=traced.type, shape=ir.Shape(sizes))


def _shaped(body: _Nodes, flags: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """`[rows]` flags with as many trailing axes as a state has."""
    return body("Reshape", flags, body.constant([-1] + [1] * len(shape)))
