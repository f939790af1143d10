"""Constants beyond the range of float16, clipped: the compiler converts all floats to it and refuses these.

They are scores of what must not be seen, limits of a clip, and the like; minus infinity stays. Weights in external
files are not looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

LARGEST = 65504.0
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def within_half(path: Path, scratch: Path) -> Path:
    """The graph in `path`, or where it has such constants a clipped copy in `scratch`, beside the same weights."""
    model = onnx.load(path, load_external_data=False)
    if not sum(map(_clip, _tensors(model))) + sum(map(_clip_plain, _nodes(model))):
        return path
    for name in _external_files(model):
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, target)  # ONNX's own loader refuses files with several names
    copy = scratch / path.name
    onnx.save(model, copy)
    return copy


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Of the graph, of its functions, and of the bodies in both."""
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in _nodes(model):
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _clip(tensor: onnx.TensorProto) -> bool:
    """Clip a tensor in place; whether there was something to clip."""
    if tensor.data_type not in FLOATS or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    values = numpy_helper.to_array(tensor)
    outside = (np.abs(values) > LARGEST) & (values != -np.inf)
    if not outside.any():
        return False
    clipped = np.where(outside, np.clip(values, -LARGEST, LARGEST), values).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(clipped, tensor.name))
    return True


def _clip_plain(node: onnx.NodeProto) -> bool:
    """Constants that are plain numbers."""
    found = False
    for attribute in node.attribute if node.op_type == "Constant" else ():
        values = list(attribute.floats) if attribute.floats else [attribute.f]
        clipped = [min(max(v, -LARGEST), LARGEST) if v != -np.inf else v for v in values]
        if attribute.name == "value_float" and clipped != values:
            attribute.f, found = clipped[0], True
        elif attribute.name == "value_floats" and clipped != values:
            del attribute.floats[:]
            attribute.floats.extend(clipped)
            found = True
    return found


def _external_files(model: onnx.ModelProto) -> set[str]:
    external = (t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
