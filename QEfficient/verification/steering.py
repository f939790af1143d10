"""What steers a call, for sessions with padded calls.

A device that packs tokens needs no shape for tokens that are tried ahead or for contexts that are read in part, so it
compiles programs that have the inputs for these whether or not they were asked for. A padded session feeds them always.
"""

from __future__ import annotations

from dataclasses import replace

from QEfficient.program import COMPUTE_CONTEXT, KEPT_LOGITS, CompiledProgram

Lengths = tuple[int, ...]


def for_padded_calls(compiled: CompiledProgram) -> CompiledProgram:
    """The same, with shapes for those inputs that its graph has."""
    spec, there = compiled.spec, {tensor.name for tensor in compiled.program.graphs["lm"].spec.controls}
    ahead: Lengths = (spec.num_speculative_tokens or (0,)) if KEPT_LOGITS in there else ()
    prefill: Lengths = ()
    decode: Lengths = ()
    if COMPUTE_CONTEXT in there:
        prefill, decode = (
            lengths or (spec.ctx_len,) for lengths in (spec.comp_ctx_lengths_prefill, spec.comp_ctx_lengths_decode)
        )
        ahead = ahead[-1:]  # a run has one number of tokens for all contexts
    steered = replace(
        spec, num_speculative_tokens=ahead, comp_ctx_lengths_prefill=prefill, comp_ctx_lengths_decode=decode
    )
    return replace(compiled, spec=steered)
