"""Constants beyond the range of float16 or of int32, clipped: the compiler converts all numbers to these, and refuses.

Floats are scores of what must not be seen, limits of a clip, and the like; minus infinity stays. Integers are bounds of
slices; those that are computed with stay, for the result would be another. Weights in external files are not looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

LARGEST = 65504.0
SMALL = 4096
"""Bytes of a constant that stands in the graph itself."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
INT32 = np.iinfo(np.int32)
BOUNDING = ("Clip", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Slice")
"""Operators that compare with an integer: what is beyond int32 and the end of int32 are the same to them."""

Change = Callable[[onnx.ModelProto], bool]
"""Changes a graph in place and says whether it did."""


def within_half(path: Path, scratch: Path, *changes: Change) -> Path:
    """The graph in `path`, or where one of the changes applies or it has such constants a copy in `scratch`, beside the
    same weights. What changes add may lie there in files of its own, if it is not small."""
    model = onnx.load(path, load_external_data=False)
    done = [change(model) for change in changes]
    done += [*map(_clip, _tensors(model)), *map(_clip_plain, nodes_of(model.graph, *model.functions))]
    done += map(_clip_integers, (model.graph, *model.functions))
    if not any(done):
        return path
    _bring_weights(model, path.parent, scratch)
    copy = scratch / path.name
    onnx.save(model, copy)
    return copy


def _bring_weights(model: onnx.ModelProto, source: Path, scratch: Path) -> None:
    """Give the files of weights a second name: they may be large. ONNX's own reader refuses such files, so the graph
    itself has the small tensors, which are all that readers want the values of."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and 0 < int(ExternalDataInfo(tensor).length or 0) <= SMALL:
            tensor.CopyFrom(with_data(tensor, source))
    for name in _external_files(model):
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _link(source / name, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or somebody else's file
        shutil.copyfile(source, target)


def with_data(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """The tensor with its data in it. Not by ONNX's own reader, which refuses files that have several names."""
    if not uses_external_data(tensor):
        return tensor
    info, whole = ExternalDataInfo(tensor), onnx.TensorProto()
    whole.CopyFrom(tensor)
    with (folder / info.location).open("rb") as file:
        file.seek(int(info.offset or 0))
        whole.raw_data = file.read(int(info.length) if info.length else -1)
    whole.data_location = onnx.TensorProto.DEFAULT
    del whole.external_data[:]
    return whole


def nodes_of(*graphs: Any) -> Iterator[onnx.NodeProto]:
    """Of graphs or functions, and of the bodies in them."""
    pending = list(graphs)
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in nodes_of(model.graph, *model.functions):
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


def _clip_integers(scope: Any) -> bool:
    """Bounds in a graph or a function."""
    readers: dict[str, set[str]] = {}
    for node in nodes_of(scope):
        for place, name in enumerate(node.input):
            is_sliced = node.op_type == "Slice" and place == 0
            readers.setdefault(name, set()).add("" if is_sliced or node.domain else node.op_type)
    bounds = {name for name, kinds in readers.items() if kinds <= set(BOUNDING)}
    tensors = [tensor for tensor in getattr(scope, "initializer", ()) if tensor.name in bounds]
    constants = [node for node in nodes_of(scope) if node.op_type == "Constant" and node.output[0] in bounds]
    tensors += [a.t for node in constants for a in node.attribute if a.HasField("t")]
    plain = [attribute for node in constants for attribute in node.attribute if attribute.name.startswith("value_int")]
    return any([*map(_clip_integer_tensor, tensors), *map(_clip_plain_integers, plain)])


def _clip_integer_tensor(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.INT64 or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    values = numpy_helper.to_array(tensor)
    clipped = values.clip(INT32.min, INT32.max)
    if (clipped == values).all():
        return False
    tensor.CopyFrom(numpy_helper.from_array(clipped, tensor.name))
    return True


def _clip_plain_integers(attribute: onnx.AttributeProto) -> bool:
    values = list(attribute.ints) if attribute.name == "value_ints" else [attribute.i]
    clipped = [min(max(value, INT32.min), INT32.max) for value in values]
    if clipped == values:
        return False
    if attribute.name == "value_ints":
        attribute.ints[:] = clipped
    else:
        attribute.i = clipped[0]
    return True


def _external_files(model: onnx.ModelProto) -> set[str]:
    external = (t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
