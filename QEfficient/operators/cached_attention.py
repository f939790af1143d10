"""`CachedAttention`: a layer's attention over its retained keys and values, as one node.

    (q, k, v, past_key, past_value, position_ids[, batch_index][, sinks][, reads]) → (output, key', value')

Attributes `scale`, `softcap`, `window`, `chunk` (0: not used). Which optional inputs and rules a node uses stands in
its name (`CachedAttentionCBWindowed`), so each body holds only what it needs. A rolling buffer keeps position p in slot
p mod slots and attends over [buffer as it was, new keys] before it writes; any other is written first, then read, the
first slots only if `reads` is there: as many as it is long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from QEfficient.operators.context import gather, read_slots, scatter_eager, zero_dead
from QEfficient.operators.functions import DOMAIN, body

MASKED = -65504.0
"""Score of what must not be seen. Finite: a row that sees nothing (an idle one) then stays finite too. And no more than
float16 holds: compilers for it refuse a constant beyond."""


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


@dataclass(frozen=True)
class Variant:
    """The optional parts of one node, which make its name and its body."""

    slots: bool = False
    rolling: bool = False
    sinks: bool = False
    windowed: bool = False
    chunked: bool = False
    capped: bool = False
    bounded: bool = False
    """Reads as many slots as its last input is long."""

    @property
    def name(self) -> str:
        parts = {
            "CB": self.slots,
            "Rolling": self.rolling,
            "Sinks": self.sinks,
            "Windowed": self.windowed,
            "Chunked": self.chunked,
            "Capped": self.capped,
            "Bounded": self.bounded,
        }
        return "CachedAttention" + "".join(part for part, used in parts.items() if used)


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


_ALL_SLOTS = "slot_range = Range(nothing, slot_count, step)"
_SOME_SLOTS = """reads_shape = Shape(reads)
    read_count = Squeeze(reads_shape)
    read_range = Range(nothing, read_count, step)
    negative = Min(reads, nothing)
    slot_range = Add(read_range, negative)"""
_READ = """{slots}
    live = LessOrEqual(slot_range, last)
    wanted = Where(live, slot_range, nothing)
    wanted3 = Unsqueeze(wanted, axis1)
    key_positions = Unsqueeze(slot_range, axis0)
    new_key = com.qualcomm.cloud.CtxScatter{cb}(past_key, {rows}position_ids, k)
    new_value = com.qualcomm.cloud.CtxScatter{cb}(past_value, {rows}position_ids, v)
    keys = com.qualcomm.cloud.CtxGather{cb}(new_key, {rows}wanted3, {count})
    read_values = com.qualcomm.cloud.CtxGather{cb}(new_value, {rows}wanted3, {count})
    live_axes = Constant<value_ints = [1, 3]>()
    live4 = Unsqueeze(live, live_axes)
    nothing_like = CastLike(nothing, v)
    values = Where(live4, read_values, nothing_like)"""

_ROLL = """slot_range = Range(nothing, slot_count, step)
    first = Slice(position_ids, axis0, axis1, axis1)
    before = Sub(first, step)
    distance = Sub(before, slot_range)
    back = Mod(distance, slot_count)
    held = Sub(before, back)
    live = GreaterOrEqual(held, nothing)
    live_axes = Constant<value_ints = [1, 3]>()
    live4 = Unsqueeze(live, live_axes)
    nothing_like = CastLike(nothing, v)
    {own_rows}
    old_keys = Where(live4, row_keys, nothing_like)
    old_values = Where(live4, row_values, nothing_like)
    keys = Concat<axis = 2>(old_keys, k)
    values = Concat<axis = 2>(old_values, v)
    none = Constant<value_int = -1>()
    held_or_none = Where(live, held, none)
    key_positions = Concat<axis = 1>(held_or_none, position_ids)
    oldest = Sub(last, slot_count)
    kept = Greater(position_ids, oldest)
    valid = GreaterOrEqual(position_ids, nothing)
    written = And(kept, valid)
    slot_of = Mod(position_ids, slot_count)
    targets = Where(written, slot_of, none)
    new_key = com.qualcomm.cloud.CtxScatter{cb}(past_key, {rows}targets, k)
    new_value = com.qualcomm.cloud.CtxScatter{cb}(past_value, {rows}targets, v)"""

_OWN_ROWS = """row_keys = Identity(past_key)
    row_values = Identity(past_value)"""
_SLOT_ROWS = """rows1 = Squeeze(batch_index, axis1)
    row_keys = Gather<axis = 0>(past_key, rows1)
    row_values = Gather<axis = 0>(past_value, rows1)"""

_WINDOW = """window_size = Constant<value_int : int = @window>()
    too_old = Sub(query_position3, window_size)
    in_window = Greater(key_position3, too_old)
    visible_window = And(visible_{n}, in_window)"""
_CHUNK = """chunk_size = Constant<value_int : int = @chunk>()
    query_chunk = Div(query_position3, chunk_size)
    key_chunk = Div(key_position3, chunk_size)
    in_chunk = Equal(query_chunk, key_chunk)
    visible_chunk = And(visible_{n}, in_chunk)"""
_CAP = """cap_value = Constant<value_float : float = @softcap>()
    cap = CastLike(cap_value, scaled)
    small = Div(scaled, cap)
    bounded = Tanh(small)
    capped = Mul(bounded, cap)"""
_SINK = """one_head_shape = Constant<value_ints = [1, -1, 1, 1]>()
    sinks32 = Cast<to = 1>(sinks)
    sink4 = Reshape(sinks32, one_head_shape)
    sink_shape = Concat<axis = 0>(batch, query_heads, steps, axis1)
    sink_column = Expand(sink4, sink_shape)
    with_sink = Concat<axis = 3>(hidden, sink_column)
    weights_sink = Softmax<axis = -1>(with_sink)
    key_count = Shape<start = 3, end = 4>(hidden)
    axis3 = Constant<value_ints = [3]>()
    weights32 = Slice(weights_sink, axis0, key_count, axis3)"""


def _text(variant: Variant) -> str:
    """The body of one variant."""
    named = (("batch_index", variant.slots), ("sinks", variant.sinks), ("reads", variant.bounded))
    optional = [name for name, used in named if used]
    inputs = ", ".join(["q", "k", "v", "past_key", "past_value", "position_ids", *optional])
    names = {"cb": "CB" if variant.slots else "", "rows": "batch_index, " if variant.slots else ""}
    names |= {"slots": _ALL_SLOTS, "count": "slot_count"}  # no Identity between: compilers would not fold it
    if variant.bounded:
        names |= {"slots": _SOME_SLOTS, "count": "read_count"}
    read = (
        _ROLL.format(own_rows=_SLOT_ROWS if variant.slots else _OWN_ROWS, **names)
        if variant.rolling
        else _READ.format(**names)
    )
    scored, rules, visible = "scaled", [], "visible_causal"
    if variant.capped:
        scored = "capped"
    limits = []
    if variant.windowed:
        limits.append(_WINDOW.format(n=visible.removeprefix("visible_")))
        visible = "visible_window"
    if variant.chunked:
        limits.append(_CHUNK.format(n=visible.removeprefix("visible_")))
        visible = "visible_chunk"
    if variant.capped:
        rules.append(_CAP)
    softmax = _SINK if variant.sinks else "weights32 = Softmax<axis = -1>(hidden)"
    newline = "\n    "
    return f"""{variant.name} <scale, softcap, window, chunk> ({inputs}) => (output, new_key, new_value) {{
    axis0 = Constant<value_ints = [0]>()
    axis1 = Constant<value_ints = [1]>()
    rest = Constant<value_ints = [-1]>()
    nothing = Constant<value_int = 0>()
    step = Constant<value_int = 1>()
    batch = Shape<start = 0, end = 1>(q)
    query_heads = Shape<start = 1, end = 2>(q)
    steps = Shape<start = 2, end = 3>(q)
    head_size = Shape<start = 3, end = 4>(q)
    heads = Shape<start = 1, end = 2>(past_key)
    slots = Shape<start = 2, end = 3>(past_key)
    value_size = Shape<start = 3, end = 4>(past_value)
    slot_count = Squeeze(slots)
    last = ReduceMax<keepdims = 1>(position_ids, axis1)
    {read}
    grouped_shape = Concat<axis = 0>(batch, heads, rest, head_size)
    grouped = Reshape(q, grouped_shape)
    keys_like = CastLike(keys, q)
    keys_turned = Transpose<perm = [0, 1, 3, 2]>(keys_like)
    products = MatMul(grouped, keys_turned)
    score_shape = Concat<axis = 0>(batch, query_heads, steps, rest)
    products4 = Reshape(products, score_shape)
    scale_value = Constant<value_float : float = @scale>()
    scale_like = CastLike(scale_value, products4)
    scaled = Mul(products4, scale_like)
    {newline.join(rules) if rules else ""}
    query_position3 = Unsqueeze(position_ids, rest)
    key_position3 = Unsqueeze(key_positions, axis1)
    not_later = LessOrEqual(key_position3, query_position3)
    occupied = GreaterOrEqual(key_position3, nothing)
    visible_causal = And(not_later, occupied)
    {newline.join(limits) if limits else ""}
    visible4 = Unsqueeze({visible}, axis1)
    scores32 = Cast<to = 1>({scored})
    unseen = Constant<value_float = {MASKED!r}>()
    hidden = Where(visible4, scores32, unseen)
    {softmax}
    weights = CastLike(weights32, q)
    weight_shape = Concat<axis = 0>(batch, heads, rest, key_total)
    grouped_weights = Reshape(weights, weight_shape)
    values_like = CastLike(values, q)
    mixed = MatMul(grouped_weights, values_like)
    output_shape = Concat<axis = 0>(batch, query_heads, steps, value_size)
    output = Reshape(mixed, output_shape)
}}""".replace("weight_shape = Concat", "key_total = Shape<start = 2, end = 3>(keys)\n    weight_shape = Concat")


def _register_all() -> None:
    flags = [False, True]
    for bits in range(2**7):
        variant = Variant(*(flags[bits >> i & 1] for i in range(7)))
        body(DOMAIN, variant.name)(lambda variant=variant: _text(variant))  # type: ignore[misc]


_register_all()
