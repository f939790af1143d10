"""Reading and writing the retained context: `CtxScatter` and `CtxGather`, and their forms with slots (`…CB`).

A position of -1 (or anything negative) is dropped: the row is written to a spare slot, which is cut off again. That
holds with and without `batch_index`.
"""

from __future__ import annotations

import torch

from QEfficient.operators.functions import CLOUD_DOMAIN, body


def scatter_eager(
    data: torch.Tensor, position_ids: torch.Tensor, updates: torch.Tensor, batch_index: torch.Tensor | None
) -> torch.Tensor:
    """`data[row, :, position] = updates[b, :, s]` for every position that is not negative; `data` stays as it is."""
    result = data.clone()
    batch, step = (position_ids >= 0).nonzero(as_tuple=True)
    rows = batch if batch_index is None else batch_index[:, 0][batch]
    result[rows, :, position_ids[batch, step]] = updates[batch, :, step].to(data.dtype)
    return result


def scatter(
    data: torch.Tensor, position_ids: torch.Tensor, updates: torch.Tensor, batch_index: torch.Tensor | None
) -> torch.Tensor:
    """Write `updates` `[b, h, s, d]` into `data` `[slots, h, C, d]` at the positions `[b, s]`."""
    if not torch.compiler.is_exporting():
        return scatter_eager(data, position_ids, updates, batch_index)
    updates = updates.to(data.dtype)
    name = "CtxScatter" if batch_index is None else "CtxScatterCB"
    rows = () if batch_index is None else (batch_index,)
    written: torch.Tensor = torch.onnx.ops.symbolic(
        f"{CLOUD_DOMAIN}::{name}",
        (data, *rows, position_ids, updates),
        dtype=data.dtype,
        shape=data.shape,
        version=1,
    )
    return written


def read_slots(data: torch.Tensor, reads: torch.Tensor | None) -> torch.Tensor:
    """The slots that are read: all, or as many as `reads` is long. What that holds does not matter as long as it is not
    negative; it is read so that nobody takes it for an input without effect."""
    return torch.arange(data.shape[2]) if reads is None else torch.arange(reads.shape[0]) + reads.clamp(max=0)


def gather(
    data: torch.Tensor,
    position_ids: torch.Tensor,
    batch_index: torch.Tensor | None,
    reads: torch.Tensor | None = None,
) -> torch.Tensor:
    """The context `[b, h, C, d]` of each row; slots beyond the row's last position repeat slot 0."""
    slots = read_slots(data, reads)
    last = position_ids.amax(dim=1, keepdim=True)
    indices = torch.where(slots <= last, slots, 0).unsqueeze(1)
    if not torch.compiler.is_exporting():
        rows = data if batch_index is None else data[batch_index[:, 0]]
        expanded = indices[..., None].expand(rows.shape[0], rows.shape[1], indices.shape[2], rows.shape[3])
        return rows.gather(2, expanded)
    length = torch.scalar_tensor(slots.shape[0], dtype=torch.int64)
    shape = (position_ids.shape[0], data.shape[1], slots.shape[0], data.shape[3])
    name = "CtxGather" if batch_index is None else "CtxGatherCB"
    place = () if batch_index is None else (batch_index,)
    read: torch.Tensor = torch.onnx.ops.symbolic(
        f"{CLOUD_DOMAIN}::{name}", (data, *place, indices, length), dtype=data.dtype, shape=shape, version=1
    )
    return read


def zero_dead(values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Zero the rows beyond each sequence's last position: 0 x NaN from an unwritten slot would be NaN."""
    live = torch.arange(values.shape[2]) <= position_ids.amax(dim=1, keepdim=True)
    return torch.where(live[:, None, :, None], values, torch.zeros((), dtype=values.dtype))


def _write(row_of: str) -> str:
    """Scatter with a spare slot behind the last, which takes what is dropped. `row_of` makes `row` `[b, 1]`."""
    return f"""{{
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    two = Constant<value_ints = [2]>()
    minus_one = Constant<value_ints = [-1]>()
    nothing = Constant<value_int = 0>()
    step = Constant<value_int = 1>()
    slots = Shape<start = 2, end = 3>(data)
    heads = Shape<start = 1, end = 2>(data)
    spare_shape_head = Shape<start = 0, end = 2>(data)
    spare_shape_tail = Shape<start = 3, end = 4>(data)
    spare_shape = Concat<axis = 0>(spare_shape_head, one, spare_shape_tail)
    first_slot = Slice(data, zero, one, two)
    spare = Expand(first_slot, spare_shape)
    padded = Concat<axis = 2>(data, spare)
    dropped = Less(position_ids, nothing)
    target = Where(dropped, slots, position_ids)
    batch_and_steps = Shape(position_ids)
    batch = Shape<start = 0, end = 1>(position_ids)
    steps = Shape<start = 1, end = 2>(position_ids)
    index_shape = Concat<axis = 0>(batch, heads, steps, one)
    {row_of}
    row_axes = Constant<value_ints = [2, 3]>()
    row4 = Unsqueeze(row, row_axes)
    row_index = Expand(row4, index_shape)
    head_count = Squeeze(heads)
    head = Range(nothing, head_count, step)
    head_axes = Constant<value_ints = [0, 2, 3]>()
    head4 = Unsqueeze(head, head_axes)
    head_index = Expand(head4, index_shape)
    target_axes = Constant<value_ints = [1, 3]>()
    target4 = Unsqueeze(target, target_axes)
    target_index = Expand(target4, index_shape)
    index = Concat<axis = 3>(row_index, head_index, target_index)
    written = ScatterND(padded, index, updates)
    output = Slice(written, zero, slots, two)
}}"""


_OWN_ROW = """batch_count = Squeeze(batch)
    row_range = Range(nothing, batch_count, step)
    row = Unsqueeze(row_range, one)"""


@body(CLOUD_DOMAIN, "CtxScatter")
def _ctx_scatter() -> str:
    return "CtxScatter (data, position_ids, updates) => (output) " + _write(_OWN_ROW)


@body(CLOUD_DOMAIN, "CtxScatterCB")
def _ctx_scatter_cb() -> str:
    return "CtxScatterCB (data, batch_index, position_ids, updates) => (output) " + _write(
        "row = Identity(batch_index)"
    )


@body(CLOUD_DOMAIN, "CtxGather")
def _ctx_gather() -> str:
    # Not by comp_ctx_len, as long as the indices are: a shape that hangs on a parameter's value would be refused.
    return """CtxGather (data, ctx_indices, comp_ctx_len) => (output) {
    minus_one = Constant<value_ints = [-1]>()
    length = Shape<start = 2, end = 3>(ctx_indices)
    batch_and_heads = Shape<start = 0, end = 2>(data)
    shape = Concat<axis = 0>(batch_and_heads, length)
    expanded = Expand(ctx_indices, shape)
    index = Unsqueeze(expanded, minus_one)
    output = GatherND<batch_dims = 2>(data, index)
}"""


@body(CLOUD_DOMAIN, "CtxGatherBlockedKV")
def _ctx_gather_blocked() -> str:
    return """CtxGatherBlockedKV (data, ctx_indices) => (output) {
    minus_one = Constant<value_ints = [-1]>()
    index = Unsqueeze(ctx_indices, minus_one)
    output = GatherND<batch_dims = 2>(data, index)
}"""


_OF_SLOTS = """{
    zero = Constant<value_int = 0>()
    step = Constant<value_int = 1>()
    one = Constant<value_ints = [1]>()
    batch = Shape<start = 0, end = 1>(batch_index)
    heads = Shape<start = 1, end = 2>(data)
    length = Shape<start = 2, end = 3>(ctx_indices)
    shape = Concat<axis = 0>(batch, heads, length, one)
    row_axes = Constant<value_ints = [2, 3]>()
    row4 = Unsqueeze(batch_index, row_axes)
    row_index = Expand(row4, shape)
    head_count = Squeeze(heads)
    head = Range(zero, head_count, step)
    head_axes = Constant<value_ints = [0, 2, 3]>()
    head4 = Unsqueeze(head, head_axes)
    head_index = Expand(head4, shape)
    slot_axes = Constant<value_ints = [3]>()
    slot4 = Unsqueeze(ctx_indices, slot_axes)
    slot_index = Expand(slot4, shape)
    index = Concat<axis = 3>(row_index, head_index, slot_index)
    output = GatherND(data, index)
}"""


@body(CLOUD_DOMAIN, "CtxGatherCB")
def _ctx_gather_cb() -> str:
    return "CtxGatherCB (data, batch_index, ctx_indices, comp_ctx_len) => (output) " + _OF_SLOTS


@body(CLOUD_DOMAIN, "CtxGatherBlockedKVCB")
def _ctx_gather_blocked_cb() -> str:
    return "CtxGatherBlockedKVCB (data, batch_index, ctx_indices) => (output) " + _OF_SLOTS
