"""`LastToken`: of the values of every token those of each sequence's last, as one node.

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
