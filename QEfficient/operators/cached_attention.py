"""`CachedAttention`: a layer's attention over its retained keys and values, as one node.

    (q, k, v, past_key, past_value, position_ids[, batch_index][, sinks][, reads]) → (output, key', value')

Attributes `scale`, `softcap`, `window`, `chunk` (0: not used). Which optional inputs and rules a node uses, and in how
many blocks it computes, stands in its name (`CachedAttentionCBWindowedBlockedKV4`), so each body holds only what it
needs. A rolling buffer keeps position p in slot p mod slots and attends over [buffer as it was, new keys] before it
writes; any other is written first, then read, the first slots only if `reads` is there: as many as it is long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from QEfficient.operators.attention_bodies import body_text
from QEfficient.operators.attention_variants import MASKED, Blocks, Parts, Variant
from QEfficient.operators.context import gather, read_slots, scatter_eager, zero_dead
from QEfficient.operators.functions import DOMAIN, family


@dataclass(frozen=True)
class AttentionRule:
    """What one layer's attention may see and how it weighs it."""

    scale: float
    window: int = 0
    """A key is seen while key position > query position - window."""
    chunk: int = 0
    """A key is seen in the query's own chunk of positions only."""
    softcap: float = 0.0
    rolling: bool = False
    blocks: Blocks = field(default_factory=Blocks)
    """Of the exported form; a rolling buffer, which is short, has none."""


@dataclass(frozen=True)
class Retained:
    """The state of one layer and where its rows stand."""

    past_key: torch.Tensor
    past_value: torch.Tensor
    position_ids: torch.Tensor
    batch_index: torch.Tensor | None = None
    reads: torch.Tensor | None = None
    """As long as the number of slots that are read; None: all are."""


def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: Retained,
    rule: AttentionRule,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output `[b, heads, s, value_dim]`, and the next keys and values. Shapes: query `[b, heads, s, d]`, key and
    value `[b, kv_heads, s, d]`, past `[slots, kv_heads, C, d]`."""
    if not torch.compiler.is_exporting():
        return _eager(query, key, value, state, rule, sinks)
    optional = (state.batch_index, sinks, None if rule.rolling else state.reads)
    variant = Variant(
        slots=state.batch_index is not None,
        rolling=rule.rolling,
        sinks=sinks is not None,
        windowed=rule.window > 0,
        chunked=rule.chunk > 0,
        capped=rule.softcap > 0,
        bounded=optional[-1] is not None,
        parts=Parts() if rule.rolling else rule.blocks.parts(query.shape[1], state.past_key.shape[1]),
    )
    dtype = state.past_key.dtype
    inputs = (query, key.to(dtype), value.to(dtype), state.past_key, state.past_value, state.position_ids)
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{variant.name}",
        (*inputs, *(o for o in optional if o is not None)),
        {"scale": rule.scale, "softcap": rule.softcap, "window": rule.window, "chunk": rule.chunk},
        dtypes=(query.dtype, dtype, dtype),
        shapes=((*query.shape[:3], value.shape[3]), state.past_key.shape, state.past_value.shape),
        version=1,
    )
    return outputs[0], outputs[1], outputs[2]


def _eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: Retained,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    positions, slots = state.position_ids, state.past_key.shape[2]
    if rule.rolling:
        keys, values, key_positions = _rolled(key, value, state)
        last = positions.amax(dim=1, keepdim=True)
        targets = torch.where((positions >= 0) & (positions > last - slots), positions % slots, -1)
    else:
        targets, key_positions = positions, read_slots(state.past_key, state.reads)[None]
    new_key = scatter_eager(state.past_key, targets, key, state.batch_index)
    new_value = scatter_eager(state.past_value, targets, value, state.batch_index)
    if not rule.rolling:
        keys = gather(new_key, positions, state.batch_index, state.reads)
        values = zero_dead(gather(new_value, positions, state.batch_index, state.reads), positions)
    groups = query.shape[1] // keys.shape[1]
    scores = query @ keys.repeat_interleave(groups, 1).transpose(2, 3).to(query.dtype) * rule.scale
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    visible = _visible(positions[:, :, None], key_positions[:, None, :], rule)
    scores = torch.where(visible[:, None], scores.float(), MASKED)
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    output = weights.to(query.dtype) @ values.repeat_interleave(groups, 1).to(query.dtype)
    return output, new_key, new_value


def _rolled(key: torch.Tensor, value: torch.Tensor, state: Retained) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of [buffer, new tokens], and the position that each of them holds (-1: nothing)."""
    slots = state.past_key.shape[2]
    before = state.position_ids[:, :1] - 1
    held = before - (before - torch.arange(slots)) % slots
    live = (held >= 0)[:, None, :, None]
    rows = slice(None) if state.batch_index is None else state.batch_index[:, 0]
    nothing = torch.zeros((), dtype=state.past_key.dtype)
    keys = torch.cat([torch.where(live, state.past_key[rows], nothing), key.to(state.past_key.dtype)], 2)
    values = torch.cat([torch.where(live, state.past_value[rows], nothing), value.to(state.past_key.dtype)], 2)
    return keys, values, torch.cat([held.clamp(min=-1), state.position_ids], 1)


def _visible(query_positions: torch.Tensor, key_positions: torch.Tensor, rule: AttentionRule) -> torch.Tensor:
    visible = (key_positions <= query_positions) & (key_positions >= 0)
    if rule.window:
        visible = visible & (key_positions > query_positions - rule.window)
    if rule.chunk:
        visible = visible & (key_positions // rule.chunk == query_positions // rule.chunk)
    return visible


@family(DOMAIN, "CachedAttention")
def _body_of(name: str) -> str | None:
    variant = Variant.named(name)
    return None if variant is None else body_text(variant)
