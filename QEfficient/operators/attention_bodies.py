"""The portable body of each variant of `CachedAttention`."""

from __future__ import annotations

from QEfficient.operators.attention_parts import (
    cap_lines,
    hidden_lines,
    rule_constants,
    scaled_lines,
    visible_lines,
)
from QEfficient.operators.attention_variants import Variant
from QEfficient.operators.blocked_attention import blocked_lines

_ALL_SLOTS = "slot_range = Range(nothing, slot_count, step)"
_SOME_SLOTS = """reads_shape = Shape(reads)
    read_count = Squeeze(reads_shape)
    read_range = Range(nothing, read_count, step)
    negative = Min(reads, nothing)
    slot_range = Add(read_range, negative)"""
_WRITE = """{slots}
    live = LessOrEqual(slot_range, last)
    wanted = Where(live, slot_range, nothing)
    live_axes = Constant<value_ints = [1, 3]>()
    nothing_like = CastLike(nothing, v)
    new_key = com.qualcomm.cloud.CtxScatter{cb}(past_key, {rows}position_ids, k)
    new_value = com.qualcomm.cloud.CtxScatter{cb}(past_value, {rows}position_ids, v)"""
_READ = """wanted3 = Unsqueeze(wanted, axis1)
    key_positions = Unsqueeze(slot_range, axis0)
    keys = com.qualcomm.cloud.CtxGather{cb}(new_key, {rows}wanted3, {count})
    read_values = com.qualcomm.cloud.CtxGather{cb}(new_value, {rows}wanted3, {count})
    live4 = Unsqueeze(live, live_axes)
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

_BEGIN = """axis0 = Constant<value_ints = [0]>()
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
    last = ReduceMax<keepdims = 1>(position_ids, axis1)"""
_SCORE = """grouped_shape = Concat<axis = 0>(batch, heads, rest, head_size)
    grouped = Reshape(q, grouped_shape)
    keys_like = CastLike(keys, q)
    keys_turned = Transpose<perm = [0, 1, 3, 2]>(keys_like)
    products = MatMul(grouped, keys_turned)
    score_shape = Concat<axis = 0>(batch, query_heads, steps, rest)
    products4 = Reshape(products, score_shape)"""
_SEE = """query_position3 = Unsqueeze(position_ids, rest)
    key_position3 = Unsqueeze(key_positions, axis1)
    not_later = LessOrEqual(key_position3, query_position3)
    occupied = GreaterOrEqual(key_position3, nothing)
    visible = And(not_later, occupied)"""
_MIX = """weights = CastLike(weights32, q)
    key_total = Shape<start = 2, end = 3>(keys)
    weight_shape = Concat<axis = 0>(batch, heads, rest, key_total)
    grouped_weights = Reshape(weights, weight_shape)
    values_like = CastLike(values, q)
    mixed = MatMul(grouped_weights, values_like)
    output_shape = Concat<axis = 0>(batch, query_heads, steps, value_size)
    output = Reshape(mixed, output_shape)"""


def body_text(variant: Variant) -> str:
    """The body of one variant."""
    named = (("batch_index", variant.slots), ("sinks", variant.sinks), ("reads", variant.bounded))
    optional = [name for name, used in named if used]
    inputs = ", ".join(["q", "k", "v", "past_key", "past_value", "position_ids", *optional])
    names = {"cb": "CB" if variant.slots else "", "rows": "batch_index, " if variant.slots else ""}
    names |= {"slots": _ALL_SLOTS, "count": "slot_count"}  # no Identity between: compilers would not fold it
    if variant.bounded:
        names |= {"slots": _SOME_SLOTS, "count": "read_count"}
    lines = [_BEGIN, *rule_constants(variant)]
    if variant.rolling:
        lines += [_ROLL.format(own_rows=_SLOT_ROWS if variant.slots else _OWN_ROWS, **names), *_whole(variant)]
    elif not variant.parts.name:
        lines += [_WRITE.format(**names), _READ.format(**names), *_whole(variant)]
    else:
        lines += [_WRITE.format(**names)]
        lines += [_READ.format(**names)] if variant.parts.keys == 1 else []
        lines += blocked_lines(variant)
    header = f"{variant.name} <scale, softcap, window, chunk> ({inputs}) => (output, new_key, new_value)"
    return f"{header} {{\n    " + "\n    ".join(lines) + "\n}"


def _whole(variant: Variant) -> list[str]:
    """All keys at once."""
    softmax = _SINK if variant.sinks else "weights32 = Softmax<axis = -1>(hidden)"
    score = [_SCORE, *scaled_lines(), *(cap_lines() if variant.capped else ())]
    see = [_SEE, *visible_lines(variant)]
    return [*score, *see, *hidden_lines(variant), softmax, _MIX]
