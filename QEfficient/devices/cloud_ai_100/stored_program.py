"""`with_stored_weights`: a program with the weights that the card holds in MXFP6, for the reference device to run.

The graph is the exported one, with nothing else changed: what the compiler is given instead of it is held against this.
Only products that the compiler is given count; a table in place of what positions decide has no weights. Rounding is to
the nearest, ties to even (see `stated` for what other ways would bring).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from QEfficient.devices.cloud_ai_100.compilation import ROLE
from QEfficient.devices.cloud_ai_100.graph.half_range import nodes_of
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.graph.table_lookups import remove_unused
from QEfficient.devices.cloud_ai_100.numerics.flat import FlatGraph
from QEfficient.devices.cloud_ai_100.numerics.matrices import Matrix, Products, copied
from QEfficient.devices.cloud_ai_100.numerics.microscaling import BLOCK, round_mxfp6
from QEfficient.devices.cloud_ai_100.options import read_options
from QEfficient.devices.weight_file import WeightFile
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram, ExportedProgram
from QEfficient.specs import CompileSpec

SLICE = 1 << 22
"""Numbers of a tensor that are in memory at a time, where its shape allows it."""


def with_stored_weights(compiled: CompiledProgram, folder: Path) -> ExportedProgram | None:
    """Write the program with rounded matrices into `folder`, in its own precision; None if none are rounded."""
    program = compiled.program
    if not read_options(compiled.spec.device_options).mxfp6_matmul:
        return None
    if program.dtype == "bfloat16":
        raise DeviceError(
            f"{program.model.name} was exported in bfloat16, which the reference device does not run: its weights in"
            " MXFP6 cannot be judged. Export it in float32."
        )
    flat = FlatGraph(program.onnx_path(ROLE), all_tokens=False)
    products = _rewrite(flat, _not_compiled(program, compiled.spec, folder))
    _write_weights(flat, products, folder)
    onnx.save(flat.model, folder / program.graphs[ROLE].file)
    return replace(program, folder=folder, graphs={ROLE: program.graphs[ROLE]})


def _not_compiled(program: ExportedProgram, spec: CompileSpec, folder: Path) -> set[str]:
    """First outputs of the nodes that are replaced before the compiler reads the graph."""
    path, entries = program.onnx_path(ROLE), spec.specializations(program.graphs[ROLE].spec.windows)
    with TemporaryDirectory(dir=folder, prefix="graph-") as scratch:
        given = _nodes(for_half(path, Path(scratch), entries))
    return {output for output, _ in _nodes(path) - given}


def _nodes(path: Path) -> set[tuple[str, str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {(node.output[0], node.op_type) for node in graph.node if node.output}


def _rewrite(flat: FlatGraph, without: set[str]) -> Products:
    """Give all products of the graph but those of some nodes new tensors for matrices, which have no data yet."""
    graph, products = flat.model.graph, Products(flat.model.graph)
    nodes = [
        new
        for node in flat.nodes
        for new in ([copied(node)] if flat.owner(node) in without else products.rewritten(node))
    ]  # fmt: skip
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(graph, products.left)
    return products


def _write_weights(flat: FlatGraph, products: Products, folder: Path) -> None:
    """All constants that are read, in the new graph or in one file beside it."""
    graph = flat.model.graph
    read = {name for node in nodes_of(graph) for name in node.input} | set(flat.outputs)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    with WeightFile(folder) as file:
        new = [_moved(tensor, flat.folder, file) if uses_external_data(tensor) else tensor for tensor in kept]
        new += [_rounded(name, matrix, flat.folder, file) for name, matrix in products.taken.items()]
    written = onnx.GraphProto(initializer=new)
    del graph.initializer[:]
    graph.initializer.extend(written.initializer)


def _moved(tensor: onnx.TensorProto, source: Path, file: WeightFile) -> onnx.TensorProto:
    return _added(tensor.name, tensor, _slices(_mapped(tensor, source), 1), file)


def _rounded(name: str, matrix: Matrix, source: Path, file: WeightFile) -> onnx.TensorProto:
    values = _mapped(matrix.tensor, source)
    whole_blocks = BLOCK if -matrix.axis == values.ndim else 1
    parts = _slices(values, whole_blocks)
    rounded = (round_mxfp6(part.astype(np.float32), matrix.axis).astype(values.dtype) for part in parts)
    return _added(name, matrix.tensor, rounded, file)


def _added(name: str, like: onnx.TensorProto, parts: Iterator[np.ndarray], file: WeightFile) -> onnx.TensorProto:
    value = file.add(name, ir.DataType(like.data_type), tuple(like.dims), parts)
    assert value.const_value is not None
    return ir.to_proto(value.const_value)


def _slices(values: np.ndarray, unit: int) -> Iterator[np.ndarray]:
    """Parts along the first axis, each a multiple of so many rows."""
    step = max(SLICE * len(values) // max(values.size, 1) // unit, 1) * unit
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _mapped(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The numbers of a constant, which stay in their file until they are read."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    info, kind = ExternalDataInfo(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / info.location, kind, "r", int(info.offset or 0), tuple(tensor.dims))
