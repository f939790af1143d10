"""The graph's contract, from what was observed: names, dtypes, axes."""

from __future__ import annotations

import torch

from QEfficient.program import Context, GraphSpec, StateSpec, TensorSpec, state_name
from QEfficient.specs import ExportSpec
from QEfficient.transformers.retained_state import StatePlan

_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


def dtype_name(dtype: torch.dtype) -> str:
    return _DTYPES[dtype]


def torch_dtype(name: str) -> torch.dtype:
    return next(dtype for dtype, known in _DTYPES.items() if known == name)


def _window_symbol(plan: StatePlan, taken: dict[int, str]) -> str:
    """The axis of a rolling buffer: one name per size."""
    assert plan.window is not None
    if plan.window not in taken:
        base = "sliding_window" if plan.rule.window else "chunk_ctx_len"
        taken[plan.window] = base if base not in taken.values() else f"{base}_{plan.window}"
    return taken[plan.window]


def causal_signature(
    plans: tuple[StatePlan, ...], spec: ExportSpec, vocab_size: int, logits_dtype: str, context: Context
) -> GraphSpec:
    """Inputs and outputs of a causal language model's graph."""
    rows = ("batch_size", "seq_len")
    inputs = [TensorSpec("input_ids", "int64", rows), TensorSpec("position_ids", "int64", rows)]
    if spec.continuous_batching:
        inputs.append(TensorSpec("batch_index", "int64", ("batch_size", 1)))
    slots = "full_batch_size" if spec.continuous_batching else "batch_size"
    taken: dict[int, str] = {}
    states = []
    for plan in plans:
        length = _window_symbol(plan, taken) if plan.rolling else "ctx_len"
        shape = (slots, *(length if size is None else size for size in plan.shape))
        name = state_name(plan.kind, plan.layer, plan.index, spec.kv_cache_prefix)
        states.append(StateSpec(TensorSpec(name, dtype_name(plan.dtype), shape), plan.kind, plan.layer, plan.window))
    logits = TensorSpec("logits", logits_dtype, ("batch_size", 1, vocab_size))
    return GraphSpec(tuple(inputs), (logits,), tuple(states), context)
