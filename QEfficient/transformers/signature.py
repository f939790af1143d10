"""The graph's contract, from what was observed: names, dtypes, axes."""

from __future__ import annotations

import torch

from QEfficient.program import (
    ACCEPTED_TOKENS,
    COMPUTE_CONTEXT,
    KEPT_LOGITS,
    MARKED_PRESENCE,
    MARKED_REPETITION,
    NEXT_TOKENS,
    PROBABILITIES,
    TOKEN_BITMASKS,
    Context,
    GraphSpec,
    StateSpec,
    TensorSpec,
    state_name,
)
from QEfficient.specs import ExportSpec, SamplerSpec
from QEfficient.transformers.retained_state import StatePlan

_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


NO_LAYER = -1
"""Of a state that belongs to none."""


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
    if spec.several_logits:
        inputs.append(TensorSpec(KEPT_LOGITS, "int64", (KEPT_LOGITS, 1)))
    if spec.compute_context:
        inputs.append(TensorSpec(COMPUTE_CONTEXT, "int64", (COMPUTE_CONTEXT,)))
    slots = "full_batch_size" if spec.continuous_batching else "batch_size"
    taken: dict[int, str] = {}
    states = []
    for plan in plans:
        length = _window_symbol(plan, taken) if plan.rolling else "ctx_len"
        shape = (slots, *(length if size is None else size for size in plan.shape))
        name = state_name(plan.kind, plan.layer, plan.index, spec.kv_cache_prefix, plan.latent)
        states.append(StateSpec(TensorSpec(name, dtype_name(plan.dtype), shape), plan.kind, plan.layer, plan.window))
    kept = KEPT_LOGITS if spec.several_logits else 1
    each = () if spec.projections is None else (1 + spec.projections.heads,)
    outputs = [TensorSpec("logits", logits_dtype, ("batch_size", kept, *each, vocab_size))]
    if spec.sampler is not None:
        inputs += _sampler_inputs(spec.sampler, vocab_size)
        outputs = [TensorSpec(NEXT_TOKENS, "int64", ("batch_size", kept, 1))]
        if spec.sampler.return_pdfs:
            outputs.insert(0, TensorSpec(PROBABILITIES, "float32", ("batch_size", kept, vocab_size)))
        marks = (TensorSpec(name, "bool", (slots, vocab_size)) for name in (MARKED_REPETITION, MARKED_PRESENCE))
        states += [StateSpec(tensor, "marks", NO_LAYER) for tensor in marks]
    return GraphSpec(tuple(inputs), tuple(outputs), tuple(states), context)


def _sampler_inputs(sampler: SamplerSpec, vocab_size: int) -> list[TensorSpec]:
    one = ("batch_size", 1)
    inputs = [
        TensorSpec(ACCEPTED_TOKENS, "int64", ("batch_size", "seq_len")),
        TensorSpec("repetition_penalties", "float32", one),
        TensorSpec("presence_penalties", "float32", one),
        TensorSpec("temperatures", "float32", one),
        TensorSpec("top_ks", "int32", one),
        TensorSpec("top_ps", "float32", one),
        TensorSpec("min_ps", "float32", one),
        TensorSpec("random_numbers", "float32", ("batch_size", sampler.max_top_k_ids)),
    ]
    return [*inputs, TensorSpec(TOKEN_BITMASKS, "bool", ("batch_size", vocab_size))] if sampler.guided else inputs
