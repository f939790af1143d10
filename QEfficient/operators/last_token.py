"""`LastToken`: of the values of every token those of each sequence's last, as one node; `LastTokens`: of its last few.

It and the nodes with state are the only places where a graph looks from one token to another, so a device that packs
tokens of many sequences into one row finds here what it has to replace.
"""

from __future__ import annotations

import torch

from QEfficient.operators.functions import DOMAIN, body


def last_token(values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Of `[b, s, n]` the row of the last token that is no padding: `[b, 1, n]`."""
    if torch.compiler.is_exporting():
        shape = (values.shape[0], 1, values.shape[2])
        chosen: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::LastToken", (values, position_ids), dtype=values.dtype, shape=shape, version=1
        )
        return chosen
    last = position_ids.argmax(dim=1).reshape(-1, 1, 1)
    return values.gather(1, last.expand(-1, 1, values.shape[2]))


def last_tokens(values: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Of `[b, s, n]` the rows of the last tokens that are no padding, as many as `kept` `[k, 1]` is long: `[b, k, n]`.

    A sequence with fewer has its tokens first, then anything. What `kept` holds does not matter as long as it is not
    negative; it is read so that nobody takes it for an input without effect.
    """
    count = kept.shape[0]
    if torch.compiler.is_exporting():
        shape = (values.shape[0], count, values.shape[2])
        chosen: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::LastTokens", (values, position_ids, kept), dtype=values.dtype, shape=shape, version=1
        )
        return chosen
    first = (position_ids.argmax(dim=1, keepdim=True) + 1 - count).clamp(min=0)
    rows = (first + torch.arange(count)).clamp(max=values.shape[1] - 1)
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))


@body(DOMAIN, "LastToken")
def _last_token() -> str:
    return """LastToken (values, position_ids) => (output) {
    positions = Cast<to = 6>(position_ids)
    last = ArgMax<axis = 1, keepdims = 1>(positions)
    rest = Constant<value_ints = [-1]>()
    last3 = Unsqueeze(last, rest)
    batch = Shape<start = 0, end = 1>(values)
    width = Shape<start = 2, end = 3>(values)
    one = Constant<value_ints = [1]>()
    shape = Concat<axis = 0>(batch, one, width)
    index = Expand(last3, shape)
    output = GatherElements<axis = 1>(values, index)
}"""


@body(DOMAIN, "LastTokens")
def _last_tokens() -> str:
    return """LastTokens (values, position_ids, kept) => (output) {
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    rest = Constant<value_ints = [-1]>()
    nothing = Constant<value_int = 0>()
    step = Constant<value_int = 1>()
    positions = Cast<to = 6>(position_ids)
    last = ArgMax<axis = 1, keepdims = 1>(positions)
    count = Shape<start = 0, end = 1>(kept)
    behind = Add(last, one)
    start = Sub(behind, count)
    first = Max(start, zero)
    steps = Squeeze(count)
    range = Range(nothing, steps, step)
    column = Squeeze(kept, one)
    negative = Min(column, zero)
    places = Add(range, negative)
    rows = Add(first, places)
    length = Shape<start = 1, end = 2>(values)
    end = Sub(length, one)
    bounded = Min(rows, end)
    chosen = Max(bounded, zero)
    chosen3 = Unsqueeze(chosen, rest)
    batch = Shape<start = 0, end = 1>(values)
    width = Shape<start = 2, end = 3>(values)
    shape = Concat<axis = 0>(batch, count, width)
    index = Expand(chosen3, shape)
    output = GatherElements<axis = 1>(values, index)
}"""
