"""PyTorch module → ONNX graph, without weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import sympy
import torch
from torch.export import Dim

from QEfficient.errors import ExportError, first_line
from QEfficient.graph import fixes
from QEfficient.operators.functions import OPSET
from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, Context, GraphSpec, TensorSpec

EXAMPLE_SIZES = {
    "batch_size": 2,
    "seq_len": 8,
    "ctx_len": 64,
    "full_batch_size": 3,
    KEPT_LOGITS: 5,
    COMPUTE_CONTEXT: 40,
}
"""Sizes to trace with: none of them 1, and no two alike, so that no size is taken for another."""
LARGEST = 1 << 24
"""Bound of a size that nothing bounds."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int64": torch.int64}
_DTYPES |= {"int32": torch.int32, "bool": torch.bool}


def example(tensor: TensorSpec) -> torch.Tensor:
    """Zeros of the spec's shape at the example sizes; a rolling buffer gets 9 slots and more."""
    shape = [size if isinstance(size, int) else EXAMPLE_SIZES.get(size, 9 + len(size) % 5) for size in tensor.shape]
    return torch.zeros(shape, dtype=_DTYPES[tensor.dtype])


def symbolic(tensor: TensorSpec) -> dict[int, Any]:
    """Which axes are dynamic. The tracer may bound them (a table has so many rows), but not fix them: see `_name`."""
    return {axis: Dim.AUTO for axis, size in enumerate(tensor.shape) if isinstance(size, str)}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' own chatter away from the user; what fails is raised, not logged."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx.experimental.symbolic_shapes")
    kept = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in kept.items():
                logging.getLogger(name).setLevel(level)


def to_onnx(module: torch.nn.Module, arguments: tuple[Any, ...], dynamic: Any, what: str) -> tuple[ir.Model, Context]:
    """Trace and translate; failures say which component and in which step."""
    step = "tracing"
    try:
        with quiet(), torch.no_grad(), fixes.patched():
            traced = torch.export.export(
                module,
                arguments,
                dynamic_shapes=dynamic,
                strict=False,
                # sizes that a model compares (`min(top_k, length)`) must not narrow what the graph accepts
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            context = _context(traced)
            step = "translating"
            fixes.fix_traced(traced)
            program = torch.onnx.export(
                traced,
                (),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table=fixes.translation_table(),
            )
            assert program is not None
            fixes.fix_translated(program)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{step} {what} failed: {_innermost(error)}") from error
    return program.model, context


def _context(traced: torch.export.ExportedProgram) -> Context:
    """Which `ctx_len` the trace holds for. Refuses one that holds for the example's sizes alone: a Python loop over
    tokens or blocks was unrolled."""
    conditions = _conditions(traced)
    found = Context()
    for name, size in EXAMPLE_SIZES.items():
        steps = [step for step in range(1, size + 1) if size % step == 0 and _grow(conditions, size, step)]
        if not steps or (steps[0] > 1 and name != "ctx_len"):
            raise ExportError(f"the model's code unrolls for one length only ({name} must be {size}).")
        if name == "ctx_len":
            found = Context(multiple_of=steps[0], largest=_largest(conditions, size, steps[0]))
    return found


Condition = tuple[Any, dict[Any, int]]
"""What a trace takes for granted about the sizes of its inputs, and the sizes of its symbols in the example."""


def _conditions(traced: torch.export.ExportedProgram) -> list[Condition]:
    """The bounds of its inputs' sizes, and what it would assert of them."""
    bounds = [sympy.Le(symbol, bound.upper) for symbol, bound in traced.range_constraints.items()]
    asserted = [node.args[0] for node in traced.graph.nodes if node.target is torch.ops.aten._assert_scalar.default]
    values = [node.meta.get("val") for node in asserted if isinstance(node, torch.fx.Node)]
    expressions = [value.node.expr for value in values if isinstance(value, torch.SymBool)]
    known = _example_sizes(traced)
    return [
        (condition, {symbol: known[symbol] for symbol in condition.free_symbols})
        for condition in (*bounds, *expressions)
        if not isinstance(condition, sympy.Ne)  # a slice of nothing or of one is told apart, but is a slice
        and condition.free_symbols <= known.keys()
    ]


def _example_sizes(traced: torch.export.ExportedProgram) -> dict[Any, int]:
    """Symbol of a size of an input → that size in the example."""
    inputs = [node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"]
    sizes: list[Any] = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape]
    symbolic = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    return {node.expr: int(node.hint) for node in symbolic if node.expr.is_Symbol}


def _hold(conditions: list[Condition], size: int, other: int) -> bool:
    """Whether all hold where what has this size in the example has another one."""
    return all(
        bool(condition.subs({symbol: other if now == size else now for symbol, now in sizes.items()}))
        for condition, sizes in conditions
    )


def _grow(conditions: list[Condition], size: int, step: int) -> bool:
    return all(_hold(conditions, size, size + step * count) for count in (1, 2, 3))


def _largest(conditions: list[Condition], size: int, step: int) -> int | None:
    """The largest size for which they hold; None if there is none."""
    fits, too_large = size // step, LARGEST // step
    if _hold(conditions, size, too_large * step):
        return None
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if _hold(conditions, size, middle * step) else (fits, middle)
    return fits * step


def _innermost(error: BaseException) -> str:
    """The first line of the deepest cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def trace_causal(module: torch.nn.Module, spec: GraphSpec) -> tuple[ir.Model, Context]:
    """The graph of a retained module, inputs and outputs named by the contract, and the contexts that it holds for."""
    ids, positions = spec.inputs[0], spec.inputs[1]
    slots = spec.inputs[2] if spec.continuous_batching else None
    controls, states = spec.controls, [state.input for state in spec.states]
    arguments, dynamic = (
        (
            form(ids),
            form(positions),
            form(slots) if slots else None,
            {control.name: form(control) for control in controls},
            [form(state) for state in states],
        )
        for form in (example, symbolic)
    )
    model, context = to_onnx(module, arguments, dynamic, "the model")
    name_ends(model.graph, spec.all_inputs, spec.all_outputs)
    return model, context


def trace_stateless(module: torch.nn.Module, spec: GraphSpec, longest: int | None = None) -> tuple[ir.Model, Context]:
    """The graph of a module that keeps nothing between calls and takes its inputs in the contract's order.

    Sizes are named here, so that a loop over the tokens is refused: the sizes of `symbolic` let it be unrolled.
    """
    sizes = {
        "batch_size": Dim("batch_size", min=1, max=LARGEST),
        "seq_len": Dim("seq_len", min=1, max=longest or LARGEST),
    }
    dynamic = tuple({axis: sizes[str(size)] for axis, size in enumerate(tensor.shape)} for tensor in spec.inputs)
    model, context = to_onnx(module, tuple(example(tensor) for tensor in spec.inputs), dynamic, "the model")
    for value, tensor in zip(model.graph.inputs, spec.inputs, strict=True):
        if all(node.op_type == "Shape" for node, _ in value.uses()):
            raise ExportError(f"nothing reads '{tensor.name}': the graph would answer the same whatever it is given.")
    name_ends(model.graph, spec.all_inputs, spec.all_outputs)
    return model, context


def name_ends(graph: ir.Graph, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Give inputs and outputs their names and symbolic axes of the contract."""
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise ExportError(
            f"the graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, the contract"
            f" {len(inputs)} and {len(outputs)}."
        )
    for index, (value, wanted) in enumerate(zip(list(graph.outputs), outputs, strict=True)):
        if value.is_graph_input() or value.is_initializer():  # a state that is handed through unchanged
            node = ir.node("Identity", [value])
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
            node.outputs[0].type = value.type
        _name(graph.outputs[index], wanted)
    for value, wanted in zip(graph.inputs, inputs, strict=True):
        _name(value, wanted)


def _name(value: ir.Value, wanted: TensorSpec) -> None:
    for axis, size in enumerate(wanted.shape):
        found = value.shape[axis] if value.shape is not None else None
        if value.is_graph_input() and isinstance(size, str) and isinstance(found, int):
            raise ExportError(f"the model fixes the size '{size}' of '{wanted.name}' to {found} when traced.")
    value.name = wanted.name
    value.shape = ir.Shape(wanted.shape)
