"""How many bytes of an ONNX model are weights, and how many of these a decoding step reads."""

from __future__ import annotations

import math
from pathlib import Path

SMALL = 1024
"""Bytes: what is smaller is a constant of the graph rather than a weight."""


def onnx_bytes(path: Path) -> tuple[int, int]:
    """All, and those not only gathered from. The file's data stays where it is."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    large = {name: size for name, size in sizes.items() if size >= SMALL}
    looked_up = sum(size for name, size in large.items() if users.get(name, set()) <= LOOKED_UP)
    return sum(large.values()), sum(large.values()) - looked_up


# Tables of rotary angles go straight into attention and are looked up by position
LOOKED_UP = {"Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding"}


def _bytes(tensor: object) -> int:
    import onnx

    assert isinstance(tensor, onnx.TensorProto)
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    bits = 4 if kind.endswith("INT4") else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.prod(tensor.dims) * bits // 8
